! churn.f90 - arrays that come and go in an arena, in Fortran, checked.
!
! Allocates and frees at random for STEPS steps, checks what every array holds,
! and publishes with each step a table of what is live: offset, words and seed
! of every array, whose word i (from 0) holds seed + i. A reader checks all of
! it.
!
!     gfortran -static -O2 ../fortran/xasm.f90 ../fortran/xasm_memory.f90 &
!         churn.f90 -L<target>/guest -lxasm
!     ./a.out [STEPS]
program churn
  use, intrinsic :: iso_c_binding, only: c_intptr_t, c_loc
  use, intrinsic :: iso_fortran_env, only: int32, int64, real32, real64
  use xasm
  use xasm_memory
  implicit none
  integer, parameter :: slots = 64, arena_bytes = 4 * 1024 * 1024
  type :: slot_type
     integer(int64), pointer :: words(:) => null()
  end type slot_type
  type(slot_type) :: live(slots)
  type(xasm_arena) :: arena
  type(xasm_settings) :: settings
  integer(int64), pointer :: table(:, :)
  integer(int64) :: step, nr_steps, base
  integer :: status, i
  character(32) :: word

  nr_steps = 100
  if (command_argument_count() > 0) then
     call get_command_argument(1, word)
     read (word, *, iostat=status) nr_steps
     if (status /= 0) error stop "churn: STEPS is no number"
  end if
  settings%chunk_bytes = 4096
  settings%policy = xasm_block
  arena = xasm_create("churn", int(arena_bytes, int64), settings)
  if (arena%id < 0) then
     print "(2a)", "churn: no arena: ", xasm_text(arena%id)
     error stop 1
  end if
  call xasm_allocate(arena, table, [3, slots], status)
  call check(status >= 0, "no room for the table")
  table = 0
  ! The first allocation is the first byte of the arena.
  base = transfer(c_loc(table), 0_c_intptr_t)
  ! Readers have it as rows of three, as in C.
  call xasm_declare(arena, "table", table, status)
  call check(status >= 0, "the table was not declared")
  call mistakes()
  call every_kind()
  do step = 1, nr_steps
     do i = 1, 20
        call change(ishft(step, 32) + ishft(int(i, int64), 16))
     end do
     call check(xasm_publish(arena, step, real(step, real64)) > 0, "not published")
  end do
  do i = 1, slots
     call xasm_deallocate(live(i)%words, status)
     call check(status == 0, "not freed")
  end do
  print "(a, i0)", "steps ", nr_steps

contains

  subroutine check(condition, what)
    logical, intent(in) :: condition
    character(*), intent(in) :: what
    if (condition) return
    print "(2a)", "churn: ", what
    error stop 1
  end subroutine check

  ! One random change of one slot.
  subroutine change(seed)
    integer(int64), intent(in) :: seed
    real(real64) :: dice(2)
    integer :: slot, length, status, i
    call random_number(dice)
    slot = 1 + int(dice(1) * slots)
    length = 1 + int(dice(2) * 2000)
    if (associated(live(slot)%words)) then
       call check(all(live(slot)%words == &
            [(table(3, slot) + i, i=0, size(live(slot)%words) - 1)]), "an array changed")
       call xasm_deallocate(live(slot)%words, status)
       call check(status == 0 .and. .not. associated(live(slot)%words), "not freed")
       table(:, slot) = 0
    else
       call xasm_allocate(arena, live(slot)%words, [length], status)
       call check(status >= 0, "no room")
       live(slot)%words = [(seed + i, i=0, length - 1)]
       table(1, slot) = transfer(c_loc(live(slot)%words), 0_c_intptr_t) - base
       table(2, slot) = length
       table(3, slot) = seed
    end if
  end subroutine change

  ! Every type and rank keeps its values.
  subroutine every_kind()
    real(real64), pointer :: d1(:), d2(:, :), d3(:, :, :)
    real(real32), pointer :: s1(:), s2(:, :), s3(:, :, :)
    integer(int64), pointer :: l1(:), l2(:, :), l3(:, :, :)
    integer(int32), pointer :: i1(:), i2(:, :), i3(:, :, :)
    integer :: all(12)
    call xasm_allocate(arena, d1, [5], all(1))
    call xasm_allocate(arena, d2, [5, 7], all(2))
    call xasm_allocate(arena, d3, [5, 7, 3], all(3))
    call xasm_allocate(arena, s1, [5], all(4))
    call xasm_allocate(arena, s2, [5, 7], all(5))
    call xasm_allocate(arena, s3, [5, 7, 3], all(6))
    call xasm_allocate(arena, l1, [5], all(7))
    call xasm_allocate(arena, l2, [5, 7], all(8))
    call xasm_allocate(arena, l3, [5, 7, 3], all(9))
    call xasm_allocate(arena, i1, [5], all(10))
    call xasm_allocate(arena, i2, [5, 7], all(11))
    call xasm_allocate(arena, i3, [5, 7, 3], all(12))
    call check(.not. any(all < 0), "a kind was not allocated")
    d1 = 1; d2 = 2; d3 = 3; s1 = 4; s2 = 5; s3 = 6
    l1 = 7; l2 = 8; l3 = 9; i1 = 10; i2 = 11; i3 = 12
    call check(nint(sum(d1)) == 5 .and. nint(sum(d2)) == 70 .and. &
         nint(sum(d3)) == 315, "real64")
    call check(nint(sum(s1)) == 20 .and. nint(sum(s2)) == 175 .and. &
         nint(sum(s3)) == 630, "real32")
    call check(sum(l1) == 35 .and. sum(l2) == 280 .and. sum(l3) == 945, "int64")
    call check(sum(i1) == 50 .and. sum(i2) == 385 .and. sum(i3) == 1260, "int32")
    call xasm_deallocate(d1, all(1)); call xasm_deallocate(d2, all(2))
    call xasm_deallocate(d3, all(3)); call xasm_deallocate(s1, all(4))
    call xasm_deallocate(s2, all(5)); call xasm_deallocate(s3, all(6))
    call xasm_deallocate(l1, all(7)); call xasm_deallocate(l2, all(8))
    call xasm_deallocate(l3, all(9)); call xasm_deallocate(i1, all(10))
    call xasm_deallocate(i2, all(11)); call xasm_deallocate(i3, all(12))
    call check(.not. any(all < 0), "a kind was not freed")
  end subroutine every_kind

  ! What is refused.
  subroutine mistakes()
    real(real64), pointer :: cube(:, :, :), field(:), again(:)
    integer :: status
    call xasm_allocate(arena, cube, [2000000000, 2000000000, 2000000000], status)
    call check(status == -12 .and. .not. associated(cube), "a product that does not fit")
    call xasm_allocate(arena, field, [arena_bytes], status)
    call check(status == -12 .and. .not. associated(field), "more than the arena")
    call xasm_allocate(arena, field, [0], status)
    call check(status == -22 .and. .not. associated(field), "an extent of 0")
    call xasm_allocate(arena, field, [10], status)
    call check(status >= 0, "no room")
    again => field
    call xasm_deallocate(field, status)
    call check(status == 0 .and. .not. associated(field), "not freed")
    call xasm_deallocate(again, status)
    call check(status == -22 .and. associated(again), "freed twice")
  end subroutine mistakes
end program churn
