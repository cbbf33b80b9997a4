! set.f90 - two arenas whose steps belong together, in Fortran.
!
! Publishes both as one step: either both get a generation, or, while a reader
! holds every bank of one of them, neither. Says "refused" at the fifth step that
! was, and ends when 20 more were published after that.
!
!     gfortran -static -O2 ../fortran/xasm.f90 ../fortran/xasm_memory.f90 &
!         set.f90 -L<target>/guest -lxasm
program set
  use, intrinsic :: iso_fortran_env, only: int64, output_unit, real64
  use xasm
  use xasm_memory
  implicit none
  integer, parameter :: eagain = 11
  type(xasm_arena) :: arenas(2)
  type(xasm_settings) :: settings
  type(xasm_counters) :: counters(2)
  integer(int64), pointer :: fluid(:), solid(:)
  integer(int64) :: step, published, refused, after
  integer :: status(2), result

  settings%chunk_bytes = 4096
  settings%nr_banks = 2
  arenas(1) = xasm_create("set/fluid", 8000_int64, settings)
  arenas(2) = xasm_create("set/solid", 8000_int64, settings)
  if (any(arenas%id < 0)) error stop "set: no arenas"
  call xasm_allocate(arenas(1), fluid, [1000], status(1))
  call xasm_allocate(arenas(2), solid, [1000], status(2))
  if (any(status < 0)) error stop "set: no room"
  call xasm_declare(arenas(1), "values", fluid, status(1))
  call xasm_declare(arenas(2), "values", solid, status(2))
  if (any(status < 0)) error stop "set: not declared"
  published = 0
  refused = 0
  after = 0
  step = 0
  do while (after < 20)
     step = step + 1
     fluid = step
     solid = step
     result = xasm_publish_all(arenas, step, real(step, real64))
     if (result == 0) then
        published = published + 1
        if (refused >= 5) after = after + 1
     else if (result == -eagain) then
        refused = refused + 1
        if (refused == 5) then
           print "(a)", "refused"
           flush (output_unit)
        end if
     else
        error stop "set: not published"
     end if
     call xasm_count(arenas(1), counters(1), status(1))
     call xasm_count(arenas(2), counters(2), status(2))
     if (any(status < 0) .or. any(counters%generation /= published)) &
          error stop "set: one without the other"
  end do
  print "(a)", "steps together"
end program set
