! halo.f90 - two programs share an array as it is, without snapshots.
!
! Makes the segment "halo", waits for its partner, and looks what came; then
! writes into the partner's "edge". Prints what happened.
program halo
  use, intrinsic :: iso_fortran_env, only: int32, int64, real64
  use xasm, only: xasm_text
  use xasm_segments
  implicit none

  integer, parameter :: nx = 64, ny = 32
  integer(int32), parameter :: patience_ms = 60000
  integer, parameter :: enoent = 2, einval = 22, eidrm = 43
  type(xasm_shared) :: ours, theirs
  real(real64), pointer, volatile :: field(:, :), edge(:)
  real(real64), pointer :: nothing(:)
  integer(int64) :: segid, other, apid
  integer :: status, i, j

  segid = xasm_make("halo", 8_int64 * nx * ny, ours, xasm_share_settings(signals=.true.))
  call check("make", int(segid))
  call xasm_array(ours, field, [nx, ny], status)
  call check("array", status)
  do j = 1, ny
     do i = 1, nx
        field(i, j) = 100 * j + i
     end do
  end do
  call check("name", int(xasm_name(ours, "ready")))
  call check("wait", int(xasm_wait_segid(segid, patience_ms)))
  print "(a, f8.1)", "halo", field(nx, ny)

  other = xasm_find("edge", patience_ms)
  call check("find", int(other))
  apid = xemem_get(other, xemem_rdwr)
  call check("get", int(apid))
  call check("subscribe", xasm_subscribe(apid))
  call xasm_attach(apid, theirs, status, offset=4096_int64)
  call check("attach", status)
  call xasm_array(theirs, edge, [nx], status, skip=512_int64)
  call check("array", status)
  edge = field(:, 1) + edge
  call check("signal", xemem_signal(apid))
  call check("wait", int(xasm_wait(apid, patience_ms)))
  print "(a, i0)", "bytes ", theirs%bytes

  ! What cannot be done is said, not done.
  call xasm_array(theirs, nothing, [int(theirs%bytes / 8) + 1], status)
  if (status /= -einval .or. associated(nothing)) error stop "beyond its end"
  call xasm_array(theirs, nothing, [1], status, skip=4_int64)
  if (status /= -einval .or. associated(nothing)) error stop "not aligned"
  if (xasm_find("nobody", 0_int32) /= -enoent) error stop "found nobody"
  if (xasm_make("x", 4095_int64, theirs) /= -einval) error stop "part of a page"
  if (xasm_make(repeat("x", 64), 4096_int64, theirs) /= -einval) error stop "name"

  call check("remove", xemem_remove(segid))
  if (xemem_get(segid, xemem_rdonly) /= -eidrm) error stop "removed, yet there"
  print "(a, f8.1)", "still", field(1, 1)
  call xasm_detach(ours, status)
  call check("detach", status)
  call check("release", xemem_release(apid))

contains

  subroutine check(what, result)
    character(*), intent(in) :: what
    integer, intent(in) :: result
    if (result >= 0) return
    print "(4a)", "halo: ", what, ": ", xasm_text(result)
    error stop 1
  end subroutine check
end program halo
