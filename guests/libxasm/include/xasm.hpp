/*
 * xasm.hpp - standard containers in an arena.
 *
 *     #include "xasm.hpp"
 *
 *     xasm_arena a = xasm_arena_create("heat", 64 << 20, nullptr);
 *     std::vector<double, xasm::allocator<double>> t(nx * ny, xasm::allocator<double>(a));
 *     uint64_t shape[] = {ny, nx};
 *     xasm_var(a, "temperature", XASM_F64, 2, shape, 'C', t.data());
 *
 * C++11 or later. Containers keep plain pointers: readers find an array's
 * elements by its variable, but cannot follow the pointers between the nodes of
 * a map. A container that grows moves: describe its variable anew.
 */
#ifndef XASM_HPP
#define XASM_HPP

#include <cstddef>
#include <cstdlib>
#include <limits>
#include <new>
#include <type_traits>

#include "xasm.h"

namespace xasm {

/*
 * Memory for `T` in the arena it was made with. Two are equal when their arenas
 * are: what one allocated the other may free. A copied container stays in the
 * arena of the one it was copied from, an assigned or swapped one takes the
 * arena along.
 *
 * Throws std::bad_alloc when the arena has no room, std::bad_array_new_length
 * for a size that cannot be. Ends the program (abort, after one line on standard
 * error) when it is to free what the arena did not allocate.
 */
template <class T>
class allocator {
public:
	using value_type = T;
	using propagate_on_container_copy_assignment = std::true_type;
	using propagate_on_container_move_assignment = std::true_type;
	using propagate_on_container_swap = std::true_type;
	using is_always_equal = std::false_type;

	explicit allocator(xasm_arena arena) noexcept : arena_(arena) {}

	template <class U>
	allocator(const allocator<U> &other) noexcept : arena_(other.arena()) {}

	T *allocate(std::size_t count)
	{
		if (count > std::numeric_limits<std::size_t>::max() / sizeof(T))
			throw std::bad_array_new_length();
		void *place = xasm_aligned_alloc(arena_, alignof(T), count * sizeof(T));
		if (place == nullptr)
			throw std::bad_alloc();
		return static_cast<T *>(place);
	}

	void deallocate(T *place, std::size_t) noexcept
	{
		if (xasm_free(place) != 0)
			std::abort();
	}

	xasm_arena arena() const noexcept { return arena_; }

private:
	xasm_arena arena_;
};

template <class T, class U>
bool operator==(const allocator<T> &a, const allocator<U> &b) noexcept
{
	return a.arena() == b.arena();
}

template <class T, class U>
bool operator!=(const allocator<T> &a, const allocator<U> &b) noexcept
{
	return !(a == b);
}

} // namespace xasm

#endif /* XASM_HPP */
