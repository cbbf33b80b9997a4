/* Every function of xasm.h outside an enclave; exits with the failing line. */
#include <errno.h>
#include <unistd.h>

#include "xasm.h"

#define CHECK(condition)           \
	do {                       \
		if (!(condition))  \
			return __LINE__; \
	} while (0)

int main(void)
{
	uint64_t shape[1] = { 4 };
	struct xasm_options bad = { .chunk_bytes = 12345 };
	struct xasm_var_spec spec = { .name = "x", .dtype = XASM_F64, .order = 'C' };
	struct xasm_stats stats;
	struct xasm_usage usage;
	struct xasm_kernel_stats kernel;
	struct xasm_host_counters counters;
	uint32_t id = 0, copy = 0;
	void *start = 0;

	struct xemem_addr nobody = { 1, 0 };
	struct xasm_attachment none = { .apid = 1, .policy = XASM_LATEST };
	struct xasm_found found;

	CHECK(xasm_available() == 0);
	CHECK(xemem_lookup_segid("a") == -ENOSYS);
	CHECK(xasm_lookup("a", 10) == -ENOSYS);
	CHECK(xemem_get(1, XEMEM_RDONLY) == -ENOSYS);
	CHECK(xemem_get(-1, XEMEM_RDONLY) == -EINVAL);
	CHECK(xemem_get(1, -1) == -EINVAL);
	CHECK(xemem_attach(nobody, 0, NULL) == (void *)-1);
	CHECK(xasm_attach(&none) == -ENOSYS);
	CHECK(xasm_attach(NULL) == -EINVAL);
	CHECK(xasm_next(&none, 0, NULL) == -ENOSYS);
	CHECK(xasm_valid(&none) == -ENOSYS);
	CHECK(xasm_find(&none, "a", &found) == -ENOSYS);
	CHECK(xasm_find(&none, "a", NULL) == -EINVAL);
	CHECK(xasm_find(&none, NULL, &found) == -EINVAL);
	CHECK(xemem_detach(&none) == -ENOSYS);
	CHECK(xemem_release(1) == -ENOSYS);
	CHECK(xemem_release(-1) == -EINVAL);
	CHECK(xasm_arena_create("a", 4096, NULL) == -ENOSYS);
	CHECK(xasm_arena_create("", 4096, NULL) == -EINVAL);
	CHECK(xasm_arena_create(NULL, 4096, NULL) == -EINVAL);
	CHECK(xasm_arena_create("a\xff", 4096, NULL) == -EINVAL);
	CHECK(xasm_arena_create("a", 4096, &bad) == -EINVAL);
	CHECK(xasm_var(0, "x", XASM_F64, 1, shape, 'C', shape) == -ENOSYS);
	CHECK(xasm_var(0, "x", 99, 1, shape, 'C', shape) == -EINVAL);
	CHECK(xasm_var(0, "x", XASM_F64, 9, shape, 'C', shape) == -EINVAL);
	CHECK(xasm_var(0, "x", XASM_F64, 1, NULL, 'C', shape) == -EINVAL);
	CHECK(xasm_var_describe(0, &spec) == -ENOSYS);
	CHECK(xasm_var_describe(0, NULL) == -EINVAL);
	CHECK(xasm_publish(0, 1, 0.5) == -ENOSYS);
	CHECK(xasm_publish(-1, 1, 0.5) == -ENOSYS);
	CHECK(xasm_arena_base(0) == NULL);
	CHECK(xasm_arena_size(0) == 0);
	CHECK(xasm_arena_alloc(0, 8, 8) == NULL);
	CHECK(xasm_prefer(&stats, 8, 1) == -ENOSYS);
	CHECK(xasm_set_policy(0, NULL, NULL) == -ENOSYS);
	CHECK(xasm_malloc(0, 8) == NULL);
	CHECK(xasm_aligned_alloc(0, 64, 8) == NULL);
	CHECK(xasm_calloc(0, 8, 8) == NULL);
	CHECK(xasm_realloc(0, NULL, 8) == NULL);
	CHECK(xasm_allocate(0, 8, 8, &start) == -ENOSYS && start == NULL);
	CHECK(xasm_allocate(0, 8, 8, NULL) == -EINVAL);
	CHECK(xasm_free(NULL) == 0);
	CHECK(xasm_usable_size(&id) == 0);
	CHECK(xasm_heap_usage(0, &usage) == -ENOSYS);
	CHECK(xasm_arena_stats(0, &stats) == -ENOSYS);
	CHECK(xasm_kernel_stats(&kernel) == -ENOSYS);
	CHECK(xasm_host_counters(&counters) == -ENOSYS);
	CHECK(xasm_arena_find(&stats) == -ENOSYS);
	CHECK(xasm_touch(&stats, 8) == -ENOSYS);
	CHECK(xasm_arena_destroy(0) == -ENOSYS);

	CHECK(aspace_get_myid(&id) == 0 && id == (uint32_t)getpid());
	CHECK(aspace_get_myid(NULL) == -EINVAL);
	CHECK(arena_map_backed_region_anywhere(id, &start, 4096, 4 * 4096, VM_USER,
					       BK_ARENA, 4096, "a", 0) == -ENOSYS);
	CHECK(arena_map_backed_region_anywhere(id, NULL, 4096, 4 * 4096, VM_USER,
					       BK_ARENA, 4096, "a", 0) == -EINVAL);
	CHECK(arena_map_backed_region(id, NULL, 4096, 4096, VM_USER, BK_ARENA, 4096,
				      "a", 0) == -EINVAL);
	CHECK(arena_map_backed_region(id, (void *)(UINT64_C(1) << 39), 4096, 4096,
				      VM_USER, BK_ARENA, 4096, "a", 0) == -ENOSYS);
	CHECK(aspace_copy(id, &copy, 0) == -ENOSYS);
	CHECK(xemem_make(&stats, 4096, "a") == -ENOSYS);
	return 0;
}
