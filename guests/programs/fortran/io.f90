! Formatted, list-directed and unformatted input and output, allocatable
! arrays, matmul and run-time checks of a Fortran program.
!
! Usage: io DIRECTORY [EXIT_CODE]
program io
  use, intrinsic :: iso_fortran_env, only: real64, int64
  implicit none
  integer, parameter :: n = 120
  real(real64), allocatable :: a(:, :), b(:, :), c(:, :), back(:)
  character(len=200) :: directory, line
  integer :: i, j, unit, status, code
  integer(int64) :: sum_of_squares
  logical :: exists

  call get_command_argument(1, directory, status=status)
  if (status /= 0) stop 2

  allocate (a(n, n), b(n, n), c(n, n))
  do j = 1, n
    do i = 1, n
      a(i, j) = real(i, real64) / j
      b(i, j) = merge(1.0_real64, 0.0_real64, i == j)
    end do
  end do
  c = matmul(a, 2.0_real64 * b)
  write (*, *) 'matmul', all(c == 2.0_real64 * a), shape(c)
  write (*, '(a, f10.4, es14.6, g12.5)') 'formats ', a(3, 7), a(1, 120), sum(b)
  write (*, '(a, 5i6, l3, z10)') 'integers', (i**2, i=1, 5), .true., 48879
  sum_of_squares = sum([(int(i, int64)**2, i=1, 1000)])
  print *, 'sum', sum_of_squares

  open (newunit=unit, file=trim(directory)//'/formatted.txt', action='write', status='new')
  do i = 1, 500
    write (unit, '(i6, 1x, f12.6)') i, sqrt(real(i, real64))
  end do
  close (unit)

  open (newunit=unit, file=trim(directory)//'/formatted.txt', action='read', status='old')
  status = 0
  i = 0
  do while (status == 0)
    read (unit, '(a)', iostat=status) line
    if (status == 0) i = i + 1
    if (i == 500) exit
  end do
  print *, 'lines', i, trim(line)
  rewind (unit)
  read (unit, *) i, a(1, 1)
  read (unit, *) j, a(2, 1)
  write (*, '(2i4, 2f12.6)') i, j, a(1:2, 1)
  close (unit, status='delete')

  open (newunit=unit, file=trim(directory)//'/unformatted.bin', form='unformatted', status='new')
  do j = 1, n
    write (unit) j, c(:, j)
  end do
  close (unit)
  allocate (back(n))
  open (newunit=unit, file=trim(directory)//'/unformatted.bin', form='unformatted', status='old')
  do j = 1, n
    read (unit) i, back
    if (i /= j .or. any(back /= c(:, j))) print *, 'record differs', j
  end do
  read (unit, iostat=status) i
  print *, 'after the end', status < 0
  close (unit, status='delete')

  open (newunit=unit, file=trim(directory)//'/direct.bin', access='direct', recl=64, &
        form='unformatted', status='new')
  do i = 1, 50
    write (unit, rec=51 - i) int(i, int64)
  end do
  read (unit, rec=7) sum_of_squares
  print *, 'direct', sum_of_squares
  close (unit, status='delete')

  open (newunit=unit, file=trim(directory)//'/absent/x', status='old', iostat=status)
  print *, 'absent', status /= 0
  inquire (file=trim(directory)//'/formatted.txt', exist=exists)
  print *, 'left over', exists

  deallocate (a, b, c)
  code = 0
  if (command_argument_count() > 1) then
    call get_command_argument(2, line)
    read (line, *) code
  end if
  if (code /= 0) stop code, quiet=.true.
end program io
