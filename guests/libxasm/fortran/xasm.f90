! xasm.f90 - how a Fortran program publishes snapshots.
!
! The functions of xasm.h with Fortran's types. Compile this file once, use the
! module, link with libxasm.a:
!
!     gfortran -static -O2 xasm.f90 prog.f90 -L... -lxasm
!
!     type(xasm_arena) :: arena
!     real(real64), pointer :: t(:, :)
!     arena = xasm_create("heat", 8_int64 * nx * ny)
!     call xasm_field(arena, "temperature", t, [nx, ny], ok)
!     do step = 1, nr_steps
!        call compute(t)
!        generation = xasm_publish(arena, step, time)
!     end do
!
! A pointer that xasm_field returns is column-major, as Fortran has it, and
! readers see it with that order. What comes and goes is xasm_allocate's, in
! xasm_memory.f90. Results are those of C: >= 0, or a negative
! errno (xasm_text tells what it means). Nothing here prints or stops.
module xasm
  use, intrinsic :: iso_c_binding
  use, intrinsic :: iso_fortran_env, only: int32, int64, real32, real64
  implicit none
  private

  public :: xasm_arena, xasm_settings, xasm_counters
  public :: xasm_is_available, xasm_create, xasm_field, xasm_publish
  public :: xasm_publish_all, xasm_wait_for_readers, xasm_count, xasm_end
  public :: xasm_text, xasm_prefer, xasm_set_policy, xasm_end_policy
  public :: xasm_copied, xasm_policy
  public :: xasm_in_turn, xasm_first_free, xasm_preferred
  public :: xasm_discard_newest, xasm_discard_oldest, xasm_block

  ! What a publish does when readers hold every bank but the live one.
  integer(c_int32_t), parameter :: xasm_discard_newest = 0
  integer(c_int32_t), parameter :: xasm_discard_oldest = 1
  integer(c_int32_t), parameter :: xasm_block = 2

  ! The bank that a copy goes to.
  integer(c_int32_t), parameter :: xasm_in_turn = 0
  integer(c_int32_t), parameter :: xasm_first_free = 1
  integer(c_int32_t), parameter :: xasm_preferred = 2

  ! Element types of xasm.h.
  integer(c_int32_t), parameter :: f64 = 1, f32 = 2, i64 = 3, i32 = 4

  ! An arena of this program.
  type :: xasm_arena
     ! >= 0, or a negative errno when it was not made.
     integer(c_int) :: id = -1
  end type xasm_arena

  ! struct xasm_options: how an arena is made; the defaults suit most programs.
  type, bind(c) :: xasm_settings
     integer(c_int64_t) :: chunk_bytes = 0
     integer(c_int64_t) :: start = 0
     integer(c_int32_t) :: nr_banks = 0
     integer(c_int32_t) :: flags = 0
     integer(c_int32_t) :: reader_gid = 0
     integer(c_int32_t) :: policy = xasm_discard_newest
     integer(c_int32_t) :: timeout_ms = 0
     integer(c_int32_t) :: retain = 0
     integer(c_int32_t) :: placement = xasm_in_turn
     integer(c_int32_t) :: reserved = 0
  end type xasm_settings

  ! struct xasm_copied: a chunk that was written in the step just published.
  type, bind(c) :: xasm_copied
     ! From 0 on: it begins at chunk * chunk_bytes.
     integer(c_int64_t) :: chunk = 0
     ! Where it is now; its next copy goes elsewhere.
     integer(c_int32_t) :: bank = 0
     integer(c_int32_t) :: reserved = 0
  end type xasm_copied

  ! A placement policy of the program, called after each publish: see xasm.h.
  ! `data` is what xasm_set_policy was given; the arena is xasm_arena(id).
  abstract interface
     subroutine xasm_policy(data, id, copied, count) bind(c)
       import :: c_int, c_int64_t, c_ptr, xasm_copied
       type(c_ptr), value :: data
       integer(c_int), value :: id
       integer(c_int64_t), value :: count
       type(xasm_copied), intent(in) :: copied(count)
     end subroutine xasm_policy
  end interface

  ! struct xasm_stats.
  type, bind(c) :: xasm_counters
     integer(c_int64_t) :: generation = 0
     integer(c_int64_t) :: dropped = 0
     integer(c_int64_t) :: discarded = 0
     integer(c_int64_t) :: waited = 0
     integer(c_int64_t) :: cow_faults = 0
     integer(c_int64_t) :: held = 0
     integer(c_int64_t) :: segid = 0
     integer(c_int64_t) :: backing_page_bytes = 0
  end type xasm_counters

  interface
     function c_available() result(yes) bind(c, name="xasm_available")
       import :: c_int
       integer(c_int) :: yes
     end function c_available

     function c_create(name, bytes, options) result(id) &
          bind(c, name="xasm_arena_create")
       import :: c_char, c_int, c_int64_t, xasm_settings
       character(kind=c_char), intent(in) :: name(*)
       integer(c_int64_t), value :: bytes
       type(xasm_settings), intent(in) :: options
       integer(c_int) :: id
     end function c_create

     function c_alloc(id, bytes, align) result(place) &
          bind(c, name="xasm_arena_alloc")
       import :: c_int, c_int64_t, c_ptr
       integer(c_int), value :: id
       integer(c_int64_t), value :: bytes, align
       type(c_ptr) :: place
     end function c_alloc

     function c_var(id, name, dtype, ndim, shape, order, data) result(index) &
          bind(c, name="xasm_var")
       import :: c_char, c_int, c_int32_t, c_int64_t, c_ptr
       integer(c_int), value :: id
       character(kind=c_char), intent(in) :: name(*)
       integer(c_int32_t), value :: dtype, ndim
       integer(c_int64_t), intent(in) :: shape(*)
       character(kind=c_char), value :: order
       type(c_ptr), value :: data
       integer(c_int) :: index
     end function c_var

     function c_publish(id, step, time) result(generation) &
          bind(c, name="xasm_publish")
       import :: c_double, c_int, c_int64_t
       integer(c_int), value :: id
       integer(c_int64_t), value :: step
       real(c_double), value :: time
       integer(c_int64_t) :: generation
     end function c_publish

     function c_publish_set(ids, count, step, time) result(status) &
          bind(c, name="xasm_publish_set")
       import :: c_double, c_int, c_int32_t, c_int64_t
       integer(c_int), intent(in) :: ids(*)
       integer(c_int32_t), value :: count
       integer(c_int64_t), value :: step
       real(c_double), value :: time
       integer(c_int) :: status
     end function c_publish_set

     function c_wait_readers(id, readers, timeout_ms) result(attached) &
          bind(c, name="xasm_wait_readers")
       import :: c_int, c_int32_t
       integer(c_int), value :: id
       integer(c_int32_t), value :: readers, timeout_ms
       integer(c_int) :: attached
     end function c_wait_readers

     function c_stats(id, stats) result(status) bind(c, name="xasm_arena_stats")
       import :: c_int, xasm_counters
       integer(c_int), value :: id
       type(xasm_counters), intent(out) :: stats
       integer(c_int) :: status
     end function c_stats

     function c_base(id) result(place) bind(c, name="xasm_arena_base")
       import :: c_int, c_ptr
       integer(c_int), value :: id
       type(c_ptr) :: place
     end function c_base

     function c_prefer(start, bytes, bank) result(status) &
          bind(c, name="xasm_prefer")
       import :: c_int, c_int64_t, c_intptr_t
       integer(c_intptr_t), value :: start
       integer(c_int64_t), value :: bytes
       integer(c_int), value :: bank
       integer(c_int) :: status
     end function c_prefer

     function c_set_policy(id, policy, data) result(status) &
          bind(c, name="xasm_set_policy")
       import :: c_funptr, c_int, c_ptr
       integer(c_int), value :: id
       type(c_funptr), value :: policy
       type(c_ptr), value :: data
       integer(c_int) :: status
     end function c_set_policy

     function c_destroy(id) result(status) bind(c, name="xasm_arena_destroy")
       import :: c_int
       integer(c_int), value :: id
       integer(c_int) :: status
     end function c_destroy

     function c_strerror(number) result(text) bind(c, name="strerror")
       import :: c_int, c_ptr
       integer(c_int), value :: number
       type(c_ptr) :: text
     end function c_strerror

     function c_strlen(text) result(length) bind(c, name="strlen")
       import :: c_ptr, c_size_t
       type(c_ptr), value :: text
       integer(c_size_t) :: length
     end function c_strlen
  end interface

  ! Takes room for an array in an arena, describes it to readers, and points to
  ! it. `status` is the variable's index, or a negative errno and the pointer is
  ! null; -ENOMEM (12) when the arena has no room left.
  interface xasm_field
     module procedure field_real64_1, field_real64_2, field_real64_3
     module procedure field_real32_1, field_real32_2, field_real32_3
     module procedure field_int64_1, field_int32_1
  end interface xasm_field

contains

  ! Whether snapshots can be published here; if not, run without.
  logical function xasm_is_available()
    xasm_is_available = c_available() /= 0
  end function xasm_is_available

  ! Makes an arena of at least `bytes` bytes, all zero; %id < 0 is the errno.
  function xasm_create(name, bytes, settings) result(arena)
    character(*), intent(in) :: name
    integer(int64), intent(in) :: bytes
    type(xasm_settings), intent(in), optional :: settings
    type(xasm_arena) :: arena
    type(xasm_settings) :: options
    if (present(settings)) options = settings
    arena%id = c_create(c_name(name), bytes, options)
  end function xasm_create

  ! Publishes the arena: the generation, or a negative errno.
  integer(int64) function xasm_publish(arena, step, time)
    type(xasm_arena), intent(in) :: arena
    integer(int64), intent(in) :: step
    real(real64), intent(in) :: time
    xasm_publish = c_publish(arena%id, step, time)
  end function xasm_publish

  ! Publishes one state of several arenas, all of them or none: 0, or a negative
  ! errno.
  integer function xasm_publish_all(arenas, step, time)
    type(xasm_arena), intent(in) :: arenas(:)
    integer(int64), intent(in) :: step
    real(real64), intent(in) :: time
    integer(c_int) :: ids(size(arenas))
    ids = arenas%id
    xasm_publish_all = c_publish_set(ids, size(ids, kind=c_int32_t), step, time)
  end function xasm_publish_all

  ! Has copies of the chunks that `bytes` bytes from `offset` on touch go to
  ! `bank` (from 0 on) where that is free; -1 takes the wish back. 0, or a
  ! negative errno; an arena with placement xasm_preferred only.
  integer function xasm_prefer(arena, offset, bytes, bank)
    type(xasm_arena), intent(in) :: arena
    integer(int64), intent(in) :: offset, bytes
    integer, intent(in) :: bank
    integer, parameter :: efault = 14
    type(c_ptr) :: base
    xasm_prefer = -efault
    if (offset < 0) return
    base = c_base(arena%id)
    xasm_prefer = c_prefer(transfer(base, 0_c_intptr_t) + offset, bytes, &
         int(bank, c_int))
  end function xasm_prefer

  ! Has `policy` called after each publish: 0, or a negative errno.
  integer function xasm_set_policy(arena, policy, data)
    type(xasm_arena), intent(in) :: arena
    procedure(xasm_policy) :: policy
    type(c_ptr), intent(in) :: data
    xasm_set_policy = c_set_policy(arena%id, c_funloc(policy), data)
  end function xasm_set_policy

  ! Has none called any more: 0, or a negative errno.
  integer function xasm_end_policy(arena)
    type(xasm_arena), intent(in) :: arena
    xasm_end_policy = c_set_policy(arena%id, c_null_funptr, c_null_ptr)
  end function xasm_end_policy

  ! Waits until so many readers are attached: how many, or a negative errno.
  integer function xasm_wait_for_readers(arena, readers, timeout_ms)
    type(xasm_arena), intent(in) :: arena
    integer(int32), intent(in) :: readers, timeout_ms
    xasm_wait_for_readers = c_wait_readers(arena%id, readers, timeout_ms)
  end function xasm_wait_for_readers

  ! The arena's counters; status 0, or a negative errno.
  subroutine xasm_count(arena, counters, status)
    type(xasm_arena), intent(in) :: arena
    type(xasm_counters), intent(out) :: counters
    integer, intent(out) :: status
    status = c_stats(arena%id, counters)
  end subroutine xasm_count

  ! Ends the arena: its pointers must not be used any more.
  subroutine xasm_end(arena)
    type(xasm_arena), intent(inout) :: arena
    integer(c_int) :: status
    status = c_destroy(arena%id)
    arena%id = -1
  end subroutine xasm_end

  ! What a negative errno means.
  function xasm_text(errno) result(text)
    integer, intent(in) :: errno
    character(:), allocatable :: text
    character(kind=c_char), pointer :: letters(:)
    type(c_ptr) :: place
    integer :: i
    place = c_strerror(int(-errno, c_int))
    call c_f_pointer(place, letters, [c_strlen(place)])
    allocate (character(size(letters)) :: text)
    do i = 1, size(letters)
       text(i:i) = letters(i)
    end do
  end function xasm_text

  pure function c_name(name) result(text)
    character(*), intent(in) :: name
    character(kind=c_char) :: text(len_trim(name) + 1)
    integer :: i
    do i = 1, len_trim(name)
       text(i) = name(i:i)
    end do
    text(len_trim(name) + 1) = c_null_char
  end function c_name

  ! Room for `extents` elements of `bytes` bytes, described to readers.
  subroutine place_field(arena, name, dtype, bytes, extents, place, status)
    type(xasm_arena), intent(in) :: arena
    character(*), intent(in) :: name
    integer(c_int32_t), intent(in) :: dtype
    integer(int64), intent(in) :: bytes
    integer, intent(in) :: extents(:)
    type(c_ptr), intent(out) :: place
    integer, intent(out) :: status
    integer, parameter :: einval = 22, enomem = 12
    integer(c_int64_t) :: shape(size(extents))
    shape = extents
    place = c_null_ptr
    status = -einval
    if (any(shape < 1)) return
    place = c_alloc(arena%id, bytes * product(shape), 0_c_int64_t)
    status = -enomem
    if (.not. c_associated(place)) return
    status = c_var(arena%id, c_name(name), dtype, size(extents, kind=c_int32_t), &
         shape, "F", place)
    if (status < 0) place = c_null_ptr
  end subroutine place_field

  subroutine field_real64_1(arena, name, field, extents, status)
    type(xasm_arena), intent(in) :: arena
    character(*), intent(in) :: name
    real(real64), pointer, intent(out) :: field(:)
    integer, intent(in) :: extents(1)
    integer, intent(out) :: status
    type(c_ptr) :: place
    nullify (field)
    call place_field(arena, name, f64, 8_int64, extents, place, status)
    if (status >= 0) call c_f_pointer(place, field, extents)
  end subroutine field_real64_1

  subroutine field_real64_2(arena, name, field, extents, status)
    type(xasm_arena), intent(in) :: arena
    character(*), intent(in) :: name
    real(real64), pointer, intent(out) :: field(:, :)
    integer, intent(in) :: extents(2)
    integer, intent(out) :: status
    type(c_ptr) :: place
    nullify (field)
    call place_field(arena, name, f64, 8_int64, extents, place, status)
    if (status >= 0) call c_f_pointer(place, field, extents)
  end subroutine field_real64_2

  subroutine field_real64_3(arena, name, field, extents, status)
    type(xasm_arena), intent(in) :: arena
    character(*), intent(in) :: name
    real(real64), pointer, intent(out) :: field(:, :, :)
    integer, intent(in) :: extents(3)
    integer, intent(out) :: status
    type(c_ptr) :: place
    nullify (field)
    call place_field(arena, name, f64, 8_int64, extents, place, status)
    if (status >= 0) call c_f_pointer(place, field, extents)
  end subroutine field_real64_3

  subroutine field_real32_1(arena, name, field, extents, status)
    type(xasm_arena), intent(in) :: arena
    character(*), intent(in) :: name
    real(real32), pointer, intent(out) :: field(:)
    integer, intent(in) :: extents(1)
    integer, intent(out) :: status
    type(c_ptr) :: place
    nullify (field)
    call place_field(arena, name, f32, 4_int64, extents, place, status)
    if (status >= 0) call c_f_pointer(place, field, extents)
  end subroutine field_real32_1

  subroutine field_real32_2(arena, name, field, extents, status)
    type(xasm_arena), intent(in) :: arena
    character(*), intent(in) :: name
    real(real32), pointer, intent(out) :: field(:, :)
    integer, intent(in) :: extents(2)
    integer, intent(out) :: status
    type(c_ptr) :: place
    nullify (field)
    call place_field(arena, name, f32, 4_int64, extents, place, status)
    if (status >= 0) call c_f_pointer(place, field, extents)
  end subroutine field_real32_2

  subroutine field_real32_3(arena, name, field, extents, status)
    type(xasm_arena), intent(in) :: arena
    character(*), intent(in) :: name
    real(real32), pointer, intent(out) :: field(:, :, :)
    integer, intent(in) :: extents(3)
    integer, intent(out) :: status
    type(c_ptr) :: place
    nullify (field)
    call place_field(arena, name, f32, 4_int64, extents, place, status)
    if (status >= 0) call c_f_pointer(place, field, extents)
  end subroutine field_real32_3

  subroutine field_int64_1(arena, name, field, extents, status)
    type(xasm_arena), intent(in) :: arena
    character(*), intent(in) :: name
    integer(int64), pointer, intent(out) :: field(:)
    integer, intent(in) :: extents(1)
    integer, intent(out) :: status
    type(c_ptr) :: place
    nullify (field)
    call place_field(arena, name, i64, 8_int64, extents, place, status)
    if (status >= 0) call c_f_pointer(place, field, extents)
  end subroutine field_int64_1

  subroutine field_int32_1(arena, name, field, extents, status)
    type(xasm_arena), intent(in) :: arena
    character(*), intent(in) :: name
    integer(int32), pointer, intent(out) :: field(:)
    integer, intent(in) :: extents(1)
    integer, intent(out) :: status
    type(c_ptr) :: place
    nullify (field)
    call place_field(arena, name, i32, 4_int64, extents, place, status)
    if (status >= 0) call c_f_pointer(place, field, extents)
  end subroutine field_int32_1

end module xasm
