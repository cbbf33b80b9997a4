! xasm_segments.f90 - how a Fortran program shares memory as it is.
!
! XEMEM's plain segments, as xasm.h has them, with Fortran's arrays. In an
! enclave only. Compile after xasm.f90; what is not in this file is in xasm.h
! under the same name.
!
!     use xasm_segments
!     type(xasm_shared) :: memory
!     real(real64), pointer, volatile :: halo(:, :)
!     segid = xasm_make("halo", 8_int64 * nx * ny, memory)
!     call xasm_array(memory, halo, [nx, ny], status)
!     call xasm_detach(memory, status)      ! halo must not be used any more
!
! and on the other side:
!
!     apid = xemem_get(xasm_find("halo", 5000), xemem_rdwr)
!     call xasm_attach(apid, memory, status)
!
! Arrays that others change while a loop looks at them are `volatile`. Results
! are those of C: >= 0, or a negative errno (xasm_text).
module xasm_segments
  use, intrinsic :: iso_c_binding
  use, intrinsic :: iso_fortran_env, only: int32, int64, real32, real64
  implicit none
  private

  public :: xasm_shared, xasm_share_settings
  public :: xasm_make, xasm_name, xasm_find, xasm_attach, xasm_array, xasm_detach
  public :: xemem_get, xemem_release, xemem_remove, xemem_signal
  public :: xemem_signal_segid, xasm_subscribe, xasm_wait, xasm_wait_segid
  public :: xemem_rdonly, xemem_rdwr

  integer(c_int), parameter :: xemem_rdonly = 1, xemem_rdwr = 2
  integer, parameter :: einval = 22, name_bytes = 64
  integer(c_int32_t), parameter :: with_signals = 1, with_group = 2

  ! Memory that is mapped here: a segment of the program's own, or a piece of one.
  type :: xasm_shared
     type(c_ptr) :: start = c_null_ptr
     integer(int64) :: bytes = 0
     ! 4096 or 2 MiB.
     integer(int64) :: page_bytes = 0
  end type xasm_shared

  ! How a segment is made; the defaults suit most programs.
  type :: xasm_share_settings
     ! 4096 or 2 MiB; 0 = either.
     integer(int64) :: page_bytes = 0
     ! Who may: rw bits as of a file; 0 = this user alone.
     integer(int32) :: mode = 0
     ! The group that `mode` means; -1 = this user's.
     integer(int32) :: group = -1
     ! Whether it can be signalled.
     logical :: signals = .false.
  end type xasm_share_settings

  ! struct xasm_segment.
  type, bind(c) :: segment
     character(kind=c_char) :: name(name_bytes) = c_null_char
     integer(c_int64_t) :: size_bytes = 0
     integer(c_int64_t) :: page_bytes = 0
     integer(c_int64_t) :: start = 0
     integer(c_int32_t) :: mode = 0
     integer(c_int32_t) :: gid = 0
     integer(c_int32_t) :: flags = 0
     integer(c_int32_t) :: reserved = 0
  end type segment

  ! struct xasm_attachment.
  type, bind(c) :: attachment
     integer(c_int64_t) :: apid = 0
     integer(c_int64_t) :: offset = 0
     integer(c_int64_t) :: size_bytes = 0
     integer(c_int64_t) :: start = 0
     integer(c_int32_t) :: policy = 1
     integer(c_int32_t) :: nr_banks = 0
     integer(c_int64_t) :: chunk_bytes = 0
  end type attachment

  interface
     ! Access to a segment, by xemem_rdonly or xemem_rdwr: an apid.
     function xemem_get(segid, flags) result(apid) bind(c)
       import :: c_int, c_int64_t
       integer(c_int64_t), value :: segid
       integer(c_int), value :: flags
       integer(c_int64_t) :: apid
     end function xemem_get

     ! Gives the access back and detaches what came by it.
     function xemem_release(apid) result(status) bind(c)
       import :: c_int, c_int64_t
       integer(c_int64_t), value :: apid
       integer(c_int) :: status
     end function xemem_release

     ! Ends a segment of the program's own; its memory stays.
     function xemem_remove(segid) result(status) bind(c)
       import :: c_int, c_int64_t
       integer(c_int64_t), value :: segid
       integer(c_int) :: status
     end function xemem_remove

     ! Signals every subscriber but this one.
     function xemem_signal(apid) result(status) bind(c)
       import :: c_int, c_int64_t
       integer(c_int64_t), value :: apid
       integer(c_int) :: status
     end function xemem_signal

     ! The same as its maker, or from outside.
     function xemem_signal_segid(segid) result(status) bind(c)
       import :: c_int, c_int64_t
       integer(c_int64_t), value :: segid
       integer(c_int) :: status
     end function xemem_signal_segid

     ! Has signals kept from now on; the maker's are without asking.
     function xasm_subscribe(apid) result(status) bind(c)
       import :: c_int, c_int64_t
       integer(c_int64_t), value :: apid
       integer(c_int) :: status
     end function xasm_subscribe

     ! Signals since the last time; waits for one; 0 when the segment has ended.
     function xasm_wait(apid, timeout_ms) result(signals) bind(c)
       import :: c_int32_t, c_int64_t
       integer(c_int64_t), value :: apid
       integer(c_int32_t), value :: timeout_ms
       integer(c_int64_t) :: signals
     end function xasm_wait

     ! The same as its maker.
     function xasm_wait_segid(segid, timeout_ms) result(signals) bind(c)
       import :: c_int32_t, c_int64_t
       integer(c_int64_t), value :: segid
       integer(c_int32_t), value :: timeout_ms
       integer(c_int64_t) :: signals
     end function xasm_wait_segid

     function c_segment_make(wanted) result(segid) bind(c, name="xasm_segment_make")
       import :: c_int64_t, segment
       type(segment), intent(inout) :: wanted
       integer(c_int64_t) :: segid
     end function c_segment_make

     function c_make(place, bytes, name) result(segid) bind(c, name="xemem_make")
       import :: c_char, c_int64_t, c_ptr
       type(c_ptr), value :: place
       integer(c_int64_t), value :: bytes
       character(kind=c_char), intent(in) :: name(*)
       integer(c_int64_t) :: segid
     end function c_make

     function c_lookup(name, timeout_ms) result(segid) bind(c, name="xasm_lookup")
       import :: c_char, c_int32_t, c_int64_t
       character(kind=c_char), intent(in) :: name(*)
       integer(c_int32_t), value :: timeout_ms
       integer(c_int64_t) :: segid
     end function c_lookup

     function c_attach(wanted) result(status) bind(c, name="xasm_attach")
       import :: attachment, c_int
       type(attachment), intent(inout) :: wanted
       integer(c_int) :: status
     end function c_attach

     function c_detach(place) result(status) bind(c, name="xemem_detach")
       import :: c_int, c_ptr
       type(c_ptr), value :: place
       integer(c_int) :: status
     end function c_detach
  end interface

  ! Points to an array that begins `skip` bytes (0) into shared memory. -EINVAL
  ! and a null pointer where it would not be inside, or not aligned.
  interface xasm_array
     module procedure array_real64_1, array_real64_2, array_real64_3
     module procedure array_real32_1, array_real32_2, array_real32_3
     module procedure array_int64_1, array_int32_1
  end interface xasm_array

contains

  ! Makes a segment of `bytes` bytes, whole pages, all zero: its id. With 0 bytes
  ! and %signals it has no memory.
  function xasm_make(name, bytes, memory, settings) result(segid)
    character(*), intent(in) :: name
    integer(int64), intent(in) :: bytes
    type(xasm_shared), intent(out) :: memory
    type(xasm_share_settings), intent(in), optional :: settings
    integer(int64) :: segid
    type(xasm_share_settings) :: chosen
    type(segment) :: wanted
    integer :: i
    segid = -einval
    if (len_trim(name) >= name_bytes) return
    if (present(settings)) chosen = settings
    do i = 1, len_trim(name)
       wanted%name(i) = name(i:i)
    end do
    wanted%size_bytes = bytes
    wanted%page_bytes = chosen%page_bytes
    wanted%mode = chosen%mode
    if (chosen%signals) wanted%flags = with_signals
    if (chosen%group >= 0) then
       wanted%flags = ior(wanted%flags, with_group)
       wanted%gid = chosen%group
    end if
    segid = c_segment_make(wanted)
    if (segid < 0 .or. bytes == 0) return
    memory = xasm_shared(at(wanted%start), wanted%size_bytes, wanted%page_bytes)
  end function xasm_make

  ! Gives a segment of the program's own a further name: its id.
  function xasm_name(memory, name) result(segid)
    type(xasm_shared), intent(in) :: memory
    character(*), intent(in) :: name
    integer(int64) :: segid
    segid = c_make(memory%start, memory%bytes, c_name(name))
  end function xasm_name

  ! The segment of that name, waiting up to `timeout_ms` for it.
  function xasm_find(name, timeout_ms) result(segid)
    character(*), intent(in) :: name
    integer(int32), intent(in) :: timeout_ms
    integer(int64) :: segid
    segid = c_lookup(c_name(name), timeout_ms)
  end function xasm_find

  ! Attaches `bytes` bytes from `offset` (whole pages) on, or all that follow.
  subroutine xasm_attach(apid, memory, status, offset, bytes)
    integer(int64), intent(in) :: apid
    type(xasm_shared), intent(out) :: memory
    integer, intent(out) :: status
    integer(int64), intent(in), optional :: offset, bytes
    type(attachment) :: wanted
    wanted%apid = apid
    if (present(offset)) wanted%offset = offset
    if (present(bytes)) wanted%size_bytes = bytes
    status = c_attach(wanted)
    if (status < 0) return
    memory = xasm_shared(at(wanted%start), wanted%size_bytes, wanted%chunk_bytes)
  end subroutine xasm_attach

  ! Unmaps it; a segment of the program's own ends. Arrays in it are gone.
  subroutine xasm_detach(memory, status)
    type(xasm_shared), intent(inout) :: memory
    integer, intent(out) :: status
    status = c_detach(memory%start)
    if (status >= 0) memory = xasm_shared()
  end subroutine xasm_detach

  ! An address as a pointer.
  pure function at(address) result(place)
    integer(c_int64_t), intent(in) :: address
    type(c_ptr) :: place
    place = transfer(address, c_null_ptr)
  end function at

  pure function c_name(name) result(text)
    character(*), intent(in) :: name
    character(kind=c_char) :: text(len_trim(name) + 1)
    integer :: i
    do i = 1, len_trim(name)
       text(i) = name(i:i)
    end do
    text(len_trim(name) + 1) = c_null_char
  end function c_name

  ! Where an array of `extents` elements of `element` bytes begins.
  subroutine locate(memory, element, extents, skip, place, status)
    type(xasm_shared), intent(in) :: memory
    integer(int64), intent(in) :: element
    integer, intent(in) :: extents(:)
    integer(int64), intent(in), optional :: skip
    type(c_ptr), intent(out) :: place
    integer, intent(out) :: status
    integer(int64) :: begin, room
    integer :: i
    place = c_null_ptr
    status = -einval
    begin = 0
    if (present(skip)) begin = skip
    if (begin < 0 .or. begin > memory%bytes) return
    if (modulo(begin, element) /= 0 .or. any(extents < 1)) return
    room = (memory%bytes - begin) / element
    do i = 1, size(extents)
       room = room / extents(i)
    end do
    if (room < 1) return
    place = at(transfer(memory%start, begin) + begin)
    status = 0
  end subroutine locate

  subroutine array_real64_1(memory, array, extents, status, skip)
    type(xasm_shared), intent(in) :: memory
    real(real64), pointer, intent(out) :: array(:)
    integer, intent(in) :: extents(1)
    integer, intent(out) :: status
    integer(int64), intent(in), optional :: skip
    type(c_ptr) :: place
    nullify (array)
    call locate(memory, 8_int64, extents, skip, place, status)
    if (status >= 0) call c_f_pointer(place, array, extents)
  end subroutine array_real64_1

  subroutine array_real64_2(memory, array, extents, status, skip)
    type(xasm_shared), intent(in) :: memory
    real(real64), pointer, intent(out) :: array(:, :)
    integer, intent(in) :: extents(2)
    integer, intent(out) :: status
    integer(int64), intent(in), optional :: skip
    type(c_ptr) :: place
    nullify (array)
    call locate(memory, 8_int64, extents, skip, place, status)
    if (status >= 0) call c_f_pointer(place, array, extents)
  end subroutine array_real64_2

  subroutine array_real64_3(memory, array, extents, status, skip)
    type(xasm_shared), intent(in) :: memory
    real(real64), pointer, intent(out) :: array(:, :, :)
    integer, intent(in) :: extents(3)
    integer, intent(out) :: status
    integer(int64), intent(in), optional :: skip
    type(c_ptr) :: place
    nullify (array)
    call locate(memory, 8_int64, extents, skip, place, status)
    if (status >= 0) call c_f_pointer(place, array, extents)
  end subroutine array_real64_3

  subroutine array_real32_1(memory, array, extents, status, skip)
    type(xasm_shared), intent(in) :: memory
    real(real32), pointer, intent(out) :: array(:)
    integer, intent(in) :: extents(1)
    integer, intent(out) :: status
    integer(int64), intent(in), optional :: skip
    type(c_ptr) :: place
    nullify (array)
    call locate(memory, 4_int64, extents, skip, place, status)
    if (status >= 0) call c_f_pointer(place, array, extents)
  end subroutine array_real32_1

  subroutine array_real32_2(memory, array, extents, status, skip)
    type(xasm_shared), intent(in) :: memory
    real(real32), pointer, intent(out) :: array(:, :)
    integer, intent(in) :: extents(2)
    integer, intent(out) :: status
    integer(int64), intent(in), optional :: skip
    type(c_ptr) :: place
    nullify (array)
    call locate(memory, 4_int64, extents, skip, place, status)
    if (status >= 0) call c_f_pointer(place, array, extents)
  end subroutine array_real32_2

  subroutine array_real32_3(memory, array, extents, status, skip)
    type(xasm_shared), intent(in) :: memory
    real(real32), pointer, intent(out) :: array(:, :, :)
    integer, intent(in) :: extents(3)
    integer, intent(out) :: status
    integer(int64), intent(in), optional :: skip
    type(c_ptr) :: place
    nullify (array)
    call locate(memory, 4_int64, extents, skip, place, status)
    if (status >= 0) call c_f_pointer(place, array, extents)
  end subroutine array_real32_3

  subroutine array_int64_1(memory, array, extents, status, skip)
    type(xasm_shared), intent(in) :: memory
    integer(int64), pointer, intent(out) :: array(:)
    integer, intent(in) :: extents(1)
    integer, intent(out) :: status
    integer(int64), intent(in), optional :: skip
    type(c_ptr) :: place
    nullify (array)
    call locate(memory, 8_int64, extents, skip, place, status)
    if (status >= 0) call c_f_pointer(place, array, extents)
  end subroutine array_int64_1

  subroutine array_int32_1(memory, array, extents, status, skip)
    type(xasm_shared), intent(in) :: memory
    integer(int32), pointer, intent(out) :: array(:)
    integer, intent(in) :: extents(1)
    integer, intent(out) :: status
    integer(int64), intent(in), optional :: skip
    type(c_ptr) :: place
    nullify (array)
    call locate(memory, 4_int64, extents, skip, place, status)
    if (status >= 0) call c_f_pointer(place, array, extents)
  end subroutine array_int32_1

end module xasm_segments
