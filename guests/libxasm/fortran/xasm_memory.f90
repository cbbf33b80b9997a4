! xasm_memory.f90 - arrays in an arena that are allocated and given back.
!
! What allocate and deallocate are for pointers to ordinary memory:
!
!     use xasm
!     use xasm_memory
!     real(real64), pointer :: t(:, :)
!     call xasm_allocate(arena, t, [nx, ny], status)
!     call xasm_declare(arena, "temperature", t, status)   ! readers see it
!     call xasm_deallocate(t, status)
!
! Pointers to real64, real32, int64 and int32 arrays with one to three
! dimensions. A status is >= 0, or a negative errno (xasm_text); then the
! pointer is null after xasm_allocate, and stays as it is after xasm_deallocate.
! Compile after xasm.f90.
module xasm_memory
  use, intrinsic :: iso_c_binding
  use, intrinsic :: iso_fortran_env, only: int32, int64, real32, real64
  use xasm, only: xasm_arena
  implicit none
  private

  public :: xasm_allocate, xasm_deallocate, xasm_declare

  integer(c_int32_t), parameter :: f64 = 1, f32 = 2, i64 = 3, i32 = 4
  integer, parameter :: einval = 22, enomem = 12

  interface
     function c_allocate(id, bytes, align, place) result(status) &
          bind(c, name="xasm_allocate")
       import :: c_int, c_int64_t, c_ptr
       integer(c_int), value :: id
       integer(c_int64_t), value :: bytes, align
       type(c_ptr), intent(inout) :: place
       integer(c_int) :: status
     end function c_allocate

     function c_free(place) result(status) bind(c, name="xasm_free")
       import :: c_int, c_ptr
       type(c_ptr), value :: place
       integer(c_int) :: status
     end function c_free

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
  end interface

  ! Room for an array of the given extents, with whatever it held before.
  interface xasm_allocate
     module procedure allocate_real64_1, allocate_real64_2, allocate_real64_3
     module procedure allocate_real32_1, allocate_real32_2, allocate_real32_3
     module procedure allocate_int64_1, allocate_int64_2, allocate_int64_3
     module procedure allocate_int32_1, allocate_int32_2, allocate_int32_3
  end interface xasm_allocate

  ! Gives the room back and nullifies the pointer.
  interface xasm_deallocate
     module procedure free_real64_1, free_real64_2, free_real64_3
     module procedure free_real32_1, free_real32_2, free_real32_3
     module procedure free_int64_1, free_int64_2, free_int64_3
     module procedure free_int32_1, free_int32_2, free_int32_3
  end interface xasm_deallocate

  ! Describes a whole allocated array to readers: the variable's index.
  interface xasm_declare
     module procedure declare_real64_1, declare_real64_2, declare_real64_3
     module procedure declare_real32_1, declare_real32_2, declare_real32_3
     module procedure declare_int64_1, declare_int64_2, declare_int64_3
     module procedure declare_int32_1, declare_int32_2, declare_int32_3
  end interface xasm_declare

contains

  ! Room for `extents` elements of `bytes` bytes; -ENOMEM where their product
  ! fits no 64 bits.
  subroutine room(arena, bytes, extents, place, status)
    type(xasm_arena), intent(in) :: arena
    integer(c_int64_t), intent(in) :: bytes
    integer, intent(in) :: extents(:)
    type(c_ptr), intent(out) :: place
    integer, intent(out) :: status
    integer(c_int64_t) :: all
    integer :: i
    place = c_null_ptr
    status = -einval
    if (any(extents < 1)) return
    status = -enomem
    all = bytes
    do i = 1, size(extents)
       if (all > huge(all) / extents(i)) return
       all = all * extents(i)
    end do
    status = c_allocate(arena%id, all, 0_c_int64_t, place)
  end subroutine room

  ! Variable `name` at `place`, with the extents of an array.
  function declare(arena, name, dtype, extents, place) result(status)
    type(xasm_arena), intent(in) :: arena
    character(*), intent(in) :: name
    integer(c_int32_t), intent(in) :: dtype
    integer, intent(in) :: extents(:)
    type(c_ptr), intent(in) :: place
    integer :: status, i
    character(kind=c_char) :: text(len_trim(name) + 1)
    integer(c_int64_t) :: shape(size(extents))
    shape = extents
    do i = 1, len_trim(name)
       text(i) = name(i:i)
    end do
    text(len_trim(name) + 1) = c_null_char
    status = c_var(arena%id, text, dtype, size(extents, kind=c_int32_t), shape, &
         "F", place)
  end function declare

  subroutine allocate_real64_1(arena, array, extents, status)
    type(xasm_arena), intent(in) :: arena
    real(real64), pointer, intent(out) :: array(:)
    integer, intent(in) :: extents(1)
    integer, intent(out) :: status
    type(c_ptr) :: place
    nullify (array)
    call room(arena, 8_c_int64_t, extents, place, status)
    if (status >= 0) call c_f_pointer(place, array, extents)
  end subroutine allocate_real64_1

  subroutine free_real64_1(array, status)
    real(real64), pointer, intent(inout) :: array(:)
    integer, intent(out) :: status
    status = 0
    if (.not. associated(array)) return
    status = c_free(c_loc(array))
    if (status >= 0) nullify (array)
  end subroutine free_real64_1

  subroutine declare_real64_1(arena, name, array, status)
    type(xasm_arena), intent(in) :: arena
    character(*), intent(in) :: name
    real(real64), pointer, intent(in) :: array(:)
    integer, intent(out) :: status
    status = -einval
    if (.not. associated(array)) return
    status = declare(arena, name, f64, shape(array), c_loc(array))
  end subroutine declare_real64_1

  subroutine allocate_real64_2(arena, array, extents, status)
    type(xasm_arena), intent(in) :: arena
    real(real64), pointer, intent(out) :: array(:, :)
    integer, intent(in) :: extents(2)
    integer, intent(out) :: status
    type(c_ptr) :: place
    nullify (array)
    call room(arena, 8_c_int64_t, extents, place, status)
    if (status >= 0) call c_f_pointer(place, array, extents)
  end subroutine allocate_real64_2

  subroutine free_real64_2(array, status)
    real(real64), pointer, intent(inout) :: array(:, :)
    integer, intent(out) :: status
    status = 0
    if (.not. associated(array)) return
    status = c_free(c_loc(array))
    if (status >= 0) nullify (array)
  end subroutine free_real64_2

  subroutine declare_real64_2(arena, name, array, status)
    type(xasm_arena), intent(in) :: arena
    character(*), intent(in) :: name
    real(real64), pointer, intent(in) :: array(:, :)
    integer, intent(out) :: status
    status = -einval
    if (.not. associated(array)) return
    status = declare(arena, name, f64, shape(array), c_loc(array))
  end subroutine declare_real64_2

  subroutine allocate_real64_3(arena, array, extents, status)
    type(xasm_arena), intent(in) :: arena
    real(real64), pointer, intent(out) :: array(:, :, :)
    integer, intent(in) :: extents(3)
    integer, intent(out) :: status
    type(c_ptr) :: place
    nullify (array)
    call room(arena, 8_c_int64_t, extents, place, status)
    if (status >= 0) call c_f_pointer(place, array, extents)
  end subroutine allocate_real64_3

  subroutine free_real64_3(array, status)
    real(real64), pointer, intent(inout) :: array(:, :, :)
    integer, intent(out) :: status
    status = 0
    if (.not. associated(array)) return
    status = c_free(c_loc(array))
    if (status >= 0) nullify (array)
  end subroutine free_real64_3

  subroutine declare_real64_3(arena, name, array, status)
    type(xasm_arena), intent(in) :: arena
    character(*), intent(in) :: name
    real(real64), pointer, intent(in) :: array(:, :, :)
    integer, intent(out) :: status
    status = -einval
    if (.not. associated(array)) return
    status = declare(arena, name, f64, shape(array), c_loc(array))
  end subroutine declare_real64_3

  subroutine allocate_real32_1(arena, array, extents, status)
    type(xasm_arena), intent(in) :: arena
    real(real32), pointer, intent(out) :: array(:)
    integer, intent(in) :: extents(1)
    integer, intent(out) :: status
    type(c_ptr) :: place
    nullify (array)
    call room(arena, 4_c_int64_t, extents, place, status)
    if (status >= 0) call c_f_pointer(place, array, extents)
  end subroutine allocate_real32_1

  subroutine free_real32_1(array, status)
    real(real32), pointer, intent(inout) :: array(:)
    integer, intent(out) :: status
    status = 0
    if (.not. associated(array)) return
    status = c_free(c_loc(array))
    if (status >= 0) nullify (array)
  end subroutine free_real32_1

  subroutine declare_real32_1(arena, name, array, status)
    type(xasm_arena), intent(in) :: arena
    character(*), intent(in) :: name
    real(real32), pointer, intent(in) :: array(:)
    integer, intent(out) :: status
    status = -einval
    if (.not. associated(array)) return
    status = declare(arena, name, f32, shape(array), c_loc(array))
  end subroutine declare_real32_1

  subroutine allocate_real32_2(arena, array, extents, status)
    type(xasm_arena), intent(in) :: arena
    real(real32), pointer, intent(out) :: array(:, :)
    integer, intent(in) :: extents(2)
    integer, intent(out) :: status
    type(c_ptr) :: place
    nullify (array)
    call room(arena, 4_c_int64_t, extents, place, status)
    if (status >= 0) call c_f_pointer(place, array, extents)
  end subroutine allocate_real32_2

  subroutine free_real32_2(array, status)
    real(real32), pointer, intent(inout) :: array(:, :)
    integer, intent(out) :: status
    status = 0
    if (.not. associated(array)) return
    status = c_free(c_loc(array))
    if (status >= 0) nullify (array)
  end subroutine free_real32_2

  subroutine declare_real32_2(arena, name, array, status)
    type(xasm_arena), intent(in) :: arena
    character(*), intent(in) :: name
    real(real32), pointer, intent(in) :: array(:, :)
    integer, intent(out) :: status
    status = -einval
    if (.not. associated(array)) return
    status = declare(arena, name, f32, shape(array), c_loc(array))
  end subroutine declare_real32_2

  subroutine allocate_real32_3(arena, array, extents, status)
    type(xasm_arena), intent(in) :: arena
    real(real32), pointer, intent(out) :: array(:, :, :)
    integer, intent(in) :: extents(3)
    integer, intent(out) :: status
    type(c_ptr) :: place
    nullify (array)
    call room(arena, 4_c_int64_t, extents, place, status)
    if (status >= 0) call c_f_pointer(place, array, extents)
  end subroutine allocate_real32_3

  subroutine free_real32_3(array, status)
    real(real32), pointer, intent(inout) :: array(:, :, :)
    integer, intent(out) :: status
    status = 0
    if (.not. associated(array)) return
    status = c_free(c_loc(array))
    if (status >= 0) nullify (array)
  end subroutine free_real32_3

  subroutine declare_real32_3(arena, name, array, status)
    type(xasm_arena), intent(in) :: arena
    character(*), intent(in) :: name
    real(real32), pointer, intent(in) :: array(:, :, :)
    integer, intent(out) :: status
    status = -einval
    if (.not. associated(array)) return
    status = declare(arena, name, f32, shape(array), c_loc(array))
  end subroutine declare_real32_3

  subroutine allocate_int64_1(arena, array, extents, status)
    type(xasm_arena), intent(in) :: arena
    integer(int64), pointer, intent(out) :: array(:)
    integer, intent(in) :: extents(1)
    integer, intent(out) :: status
    type(c_ptr) :: place
    nullify (array)
    call room(arena, 8_c_int64_t, extents, place, status)
    if (status >= 0) call c_f_pointer(place, array, extents)
  end subroutine allocate_int64_1

  subroutine free_int64_1(array, status)
    integer(int64), pointer, intent(inout) :: array(:)
    integer, intent(out) :: status
    status = 0
    if (.not. associated(array)) return
    status = c_free(c_loc(array))
    if (status >= 0) nullify (array)
  end subroutine free_int64_1

  subroutine declare_int64_1(arena, name, array, status)
    type(xasm_arena), intent(in) :: arena
    character(*), intent(in) :: name
    integer(int64), pointer, intent(in) :: array(:)
    integer, intent(out) :: status
    status = -einval
    if (.not. associated(array)) return
    status = declare(arena, name, i64, shape(array), c_loc(array))
  end subroutine declare_int64_1

  subroutine allocate_int64_2(arena, array, extents, status)
    type(xasm_arena), intent(in) :: arena
    integer(int64), pointer, intent(out) :: array(:, :)
    integer, intent(in) :: extents(2)
    integer, intent(out) :: status
    type(c_ptr) :: place
    nullify (array)
    call room(arena, 8_c_int64_t, extents, place, status)
    if (status >= 0) call c_f_pointer(place, array, extents)
  end subroutine allocate_int64_2

  subroutine free_int64_2(array, status)
    integer(int64), pointer, intent(inout) :: array(:, :)
    integer, intent(out) :: status
    status = 0
    if (.not. associated(array)) return
    status = c_free(c_loc(array))
    if (status >= 0) nullify (array)
  end subroutine free_int64_2

  subroutine declare_int64_2(arena, name, array, status)
    type(xasm_arena), intent(in) :: arena
    character(*), intent(in) :: name
    integer(int64), pointer, intent(in) :: array(:, :)
    integer, intent(out) :: status
    status = -einval
    if (.not. associated(array)) return
    status = declare(arena, name, i64, shape(array), c_loc(array))
  end subroutine declare_int64_2

  subroutine allocate_int64_3(arena, array, extents, status)
    type(xasm_arena), intent(in) :: arena
    integer(int64), pointer, intent(out) :: array(:, :, :)
    integer, intent(in) :: extents(3)
    integer, intent(out) :: status
    type(c_ptr) :: place
    nullify (array)
    call room(arena, 8_c_int64_t, extents, place, status)
    if (status >= 0) call c_f_pointer(place, array, extents)
  end subroutine allocate_int64_3

  subroutine free_int64_3(array, status)
    integer(int64), pointer, intent(inout) :: array(:, :, :)
    integer, intent(out) :: status
    status = 0
    if (.not. associated(array)) return
    status = c_free(c_loc(array))
    if (status >= 0) nullify (array)
  end subroutine free_int64_3

  subroutine declare_int64_3(arena, name, array, status)
    type(xasm_arena), intent(in) :: arena
    character(*), intent(in) :: name
    integer(int64), pointer, intent(in) :: array(:, :, :)
    integer, intent(out) :: status
    status = -einval
    if (.not. associated(array)) return
    status = declare(arena, name, i64, shape(array), c_loc(array))
  end subroutine declare_int64_3

  subroutine allocate_int32_1(arena, array, extents, status)
    type(xasm_arena), intent(in) :: arena
    integer(int32), pointer, intent(out) :: array(:)
    integer, intent(in) :: extents(1)
    integer, intent(out) :: status
    type(c_ptr) :: place
    nullify (array)
    call room(arena, 4_c_int64_t, extents, place, status)
    if (status >= 0) call c_f_pointer(place, array, extents)
  end subroutine allocate_int32_1

  subroutine free_int32_1(array, status)
    integer(int32), pointer, intent(inout) :: array(:)
    integer, intent(out) :: status
    status = 0
    if (.not. associated(array)) return
    status = c_free(c_loc(array))
    if (status >= 0) nullify (array)
  end subroutine free_int32_1

  subroutine declare_int32_1(arena, name, array, status)
    type(xasm_arena), intent(in) :: arena
    character(*), intent(in) :: name
    integer(int32), pointer, intent(in) :: array(:)
    integer, intent(out) :: status
    status = -einval
    if (.not. associated(array)) return
    status = declare(arena, name, i32, shape(array), c_loc(array))
  end subroutine declare_int32_1

  subroutine allocate_int32_2(arena, array, extents, status)
    type(xasm_arena), intent(in) :: arena
    integer(int32), pointer, intent(out) :: array(:, :)
    integer, intent(in) :: extents(2)
    integer, intent(out) :: status
    type(c_ptr) :: place
    nullify (array)
    call room(arena, 4_c_int64_t, extents, place, status)
    if (status >= 0) call c_f_pointer(place, array, extents)
  end subroutine allocate_int32_2

  subroutine free_int32_2(array, status)
    integer(int32), pointer, intent(inout) :: array(:, :)
    integer, intent(out) :: status
    status = 0
    if (.not. associated(array)) return
    status = c_free(c_loc(array))
    if (status >= 0) nullify (array)
  end subroutine free_int32_2

  subroutine declare_int32_2(arena, name, array, status)
    type(xasm_arena), intent(in) :: arena
    character(*), intent(in) :: name
    integer(int32), pointer, intent(in) :: array(:, :)
    integer, intent(out) :: status
    status = -einval
    if (.not. associated(array)) return
    status = declare(arena, name, i32, shape(array), c_loc(array))
  end subroutine declare_int32_2

  subroutine allocate_int32_3(arena, array, extents, status)
    type(xasm_arena), intent(in) :: arena
    integer(int32), pointer, intent(out) :: array(:, :, :)
    integer, intent(in) :: extents(3)
    integer, intent(out) :: status
    type(c_ptr) :: place
    nullify (array)
    call room(arena, 4_c_int64_t, extents, place, status)
    if (status >= 0) call c_f_pointer(place, array, extents)
  end subroutine allocate_int32_3

  subroutine free_int32_3(array, status)
    integer(int32), pointer, intent(inout) :: array(:, :, :)
    integer, intent(out) :: status
    status = 0
    if (.not. associated(array)) return
    status = c_free(c_loc(array))
    if (status >= 0) nullify (array)
  end subroutine free_int32_3

  subroutine declare_int32_3(arena, name, array, status)
    type(xasm_arena), intent(in) :: arena
    character(*), intent(in) :: name
    integer(int32), pointer, intent(in) :: array(:, :, :)
    integer, intent(out) :: status
    status = -einval
    if (.not. associated(array)) return
    status = declare(arena, name, i32, shape(array), c_loc(array))
  end subroutine declare_int32_3

end module xasm_memory
