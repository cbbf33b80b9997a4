! heat.f90 - heat in a plate, published step by step, in Fortran.
!
! The three calls are marked (1), (2), (3). Readers see `temperature` of arena
! "heat" in Fortran order; where snapshots cannot be published the program runs
! without.
!
!     gfortran -static -O2 ../fortran/xasm.f90 heat.f90 -L<target>/guest -lxasm
!     ./a.out [STEPS]
program heat
  use, intrinsic :: iso_fortran_env, only: int64, real64
  use xasm
  implicit none
  integer, parameter :: nx = 96, ny = 64
  type(xasm_arena) :: arena
  type(xasm_counters) :: counters
  real(real64), pointer :: t(:, :)
  real(real64) :: next(nx, ny)
  integer(int64) :: step, nr_steps, published
  integer :: status
  character(32) :: word

  nr_steps = 10
  if (command_argument_count() > 0) then
     call get_command_argument(1, word)
     read (word, *, iostat=status) nr_steps
     if (status /= 0) error stop "heat: STEPS is no number"
  end if

  arena = xasm_create("heat", 8_int64 * nx * ny)                        ! (1)
  if (arena%id >= 0) then
     call xasm_field(arena, "temperature", t, [nx, ny], status)         ! (2)
     if (status < 0) error stop "heat: no room for the field"
  else if (xasm_is_available()) then
     print "(2a)", "heat: no arena: ", xasm_text(arena%id)
     error stop 1
  else
     print "(a)", "no enclave or broker here: running without snapshots"
     allocate (t(nx, ny))
  end if

  t = 0
  t(:, 1) = 100
  next = t
  published = 0
  do step = 1, nr_steps
     next(2:nx - 1, 2:ny - 1) = t(2:nx - 1, 2:ny - 1) + 0.2_real64 * ( &
          t(1:nx - 2, 2:ny - 1) + t(3:nx, 2:ny - 1) + &
          t(2:nx - 1, 1:ny - 2) + t(2:nx - 1, 3:ny) - 4 * t(2:nx - 1, 2:ny - 1))
     t = next
     if (arena%id < 0) cycle
     if (xasm_publish(arena, step, 0.2_real64 * step) > 0) published = published + 1  ! (3)
  end do
  print "(a, i0, a, f14.9, a, i0)", "steps ", nr_steps, "  mean ", &
       sum(t) / size(t), "  published ", published
  if (arena%id >= 0) then
     call xasm_count(arena, counters, status)
     print "(a, i0)", "generation ", counters%generation
     call xasm_end(arena)
  end if
end program heat
