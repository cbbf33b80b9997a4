! placement.f90 - a placement policy in Fortran.
!
! After each publish the policy is told which chunks were written, and wishes that
! their next copies go two banks on. Nobody reads, so every wish is granted, which
! the next step shows. Prints "placed".
!
!     gfortran -static -O2 ../fortran/xasm.f90 placement.f90 &
!         -L<target>/guest -lxasm
module two_banks_on
  use, intrinsic :: iso_c_binding
  use xasm
  implicit none
  integer, parameter :: nr_chunks = 200, nr_banks = 4
  integer(c_int64_t), parameter :: chunk_bytes = 4096

  ! What the policy knows; it gets the address of one.
  type, bind(c) :: known
     integer(c_int32_t) :: wish(0:nr_chunks - 1) = -1
     integer(c_int64_t) :: told = 0
     integer(c_int64_t) :: granted = 0
     integer(c_int32_t) :: wrong = 0
  end type known

contains

  subroutine choose(data, id, copied, count) bind(c)
    type(c_ptr), value :: data
    integer(c_int), value :: id
    integer(c_int64_t), value :: count
    type(xasm_copied), intent(in) :: copied(count)
    type(known), pointer :: all
    integer(c_int64_t) :: i
    integer :: bank
    call c_f_pointer(data, all)
    do i = 1, count
       associate (wish => all%wish(copied(i)%chunk))
         if (wish == copied(i)%bank) all%granted = all%granted + 1
         if (wish >= 0 .and. wish /= copied(i)%bank) all%wrong = all%wrong + 1
         bank = mod(copied(i)%bank + 2, nr_banks)
         wish = bank
         if (xasm_prefer(xasm_arena(id), copied(i)%chunk * chunk_bytes, &
              chunk_bytes, bank) /= 0) all%wrong = all%wrong + 1
       end associate
    end do
    all%told = all%told + count
  end subroutine choose

end module two_banks_on

program placement
  use, intrinsic :: iso_c_binding
  use, intrinsic :: iso_fortran_env, only: int64, real64
  use two_banks_on
  use xasm
  implicit none
  integer, parameter :: einval = 22, efault = 14, words = chunk_bytes / 8
  integer(int64), parameter :: bytes = nr_chunks * chunk_bytes
  type(xasm_arena) :: arena, other
  type(xasm_settings) :: settings
  type(known), target :: policy
  integer(int64), pointer :: field(:)
  integer(int64) :: step, first
  integer :: status, answers(6)

  settings%chunk_bytes = chunk_bytes
  settings%nr_banks = nr_banks
  settings%placement = xasm_first_free
  other = xasm_create("other", bytes, settings)
  settings%placement = xasm_preferred
  arena = xasm_create("placed", bytes, settings)
  if (arena%id < 0 .or. other%id < 0) error stop "placement: no arenas"
  answers(1) = xasm_prefer(other, 0_int64, bytes, 1)
  answers(2) = xasm_prefer(arena, 0_int64, bytes, nr_banks)
  answers(3) = xasm_prefer(arena, 0_int64, bytes + 1, 1)
  answers(4) = xasm_prefer(arena, -1_int64, 1_int64, 1)
  answers(5) = xasm_set_policy(other, choose, c_loc(policy))
  answers(6) = xasm_set_policy(arena, choose, c_loc(policy))
  if (any(answers /= [-einval, -einval, -efault, -efault, -einval, 0])) &
       error stop "placement: not refused"
  call xasm_field(arena, "words", field, [int(bytes / 8)], status)
  if (status < 0) error stop "placement: no room"
  do step = 1, 6
     do first = 1, bytes / 8, words
        field(first) = step
     end do
     if (xasm_publish(arena, step, real(step, real64)) /= step) &
          error stop "placement: not published"
  end do
  if (policy%wrong /= 0) error stop "placement: not where it was wished"
  if (policy%granted < 4 * nr_chunks .or. policy%told > 6 * nr_chunks) &
       error stop "placement: not all told"
  if (xasm_end_policy(arena) /= 0) error stop "placement: no end"
  policy%told = 0
  field(1) = 0
  if (xasm_publish(arena, 7_int64, 7.0_real64) /= 7) &
       error stop "placement: not published at the end"
  if (policy%told /= 0) error stop "placement: told after the end"
  print "(a)", "placed"
end program placement
