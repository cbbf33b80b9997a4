/*
 * churn.cpp - standard containers in an arena, checked.
 *
 * A map of vectors, both in the arena, that come, grow and go at random; it publishes
 * with each step a table of what is live: offset, words and seed of every
 * allocation, whose word i holds seed + i. A reader checks all of it.
 *
 *     g++ -static -O2 churn.cpp -I../include -L<target>/guest -lxasm
 *     ./a.out [STEPS]
 */
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <vector>

#include "xasm.hpp"

static const unsigned SLOTS = 64;

using words = std::vector<uint64_t, xasm::allocator<uint64_t>>;
using entry = std::pair<const uint64_t, words>;
using vectors = std::map<uint64_t, words, std::less<uint64_t>, xasm::allocator<entry>>;

static void check(bool condition, const char *what)
{
	if (!condition) {
		std::fprintf(stderr, "churn: %s\n", what);
		std::exit(1);
	}
}

/* Offset, words and seed of each vector; the seed is what its first word is. */
static void tabulate(xasm_arena arena, const vectors &all, words &table)
{
	const char *base = static_cast<const char *>(xasm_arena_base(arena));
	std::size_t row = 0;

	std::fill(table.begin(), table.end(), 0);
	for (const auto &one : all) {
		const char *data = reinterpret_cast<const char *>(one.second.data());
		table.at(row++) = static_cast<uint64_t>(data - base);
		table.at(row++) = one.second.size();
		table.at(row++) = one.second.front();
	}
}

static void change(vectors &all, std::mt19937_64 &random, uint64_t seed)
{
	uint64_t key = random() % SLOTS;
	auto found = all.find(key);

	if (found == all.end()) {
		words fresh(all.get_allocator());
		for (uint64_t i = 0; i < 1 + random() % 2000; i++)
			fresh.push_back(seed + i);
		all.emplace(key, std::move(fresh));
		return;
	}
	words &old = found->second;
	for (uint64_t i = 0; i < old.size(); i++)
		check(old[i] == old[0] + i, "a vector changed");
	if (random() % 2) {
		all.erase(found);
		return;
	}
	for (uint64_t i = old.size(); i < 2000; i += 1 + random() % 64)
		old.push_back(old.back() + 1);
	old.shrink_to_fit();
}

static void mistakes(xasm_arena arena)
{
	xasm::allocator<double> here(arena);
	bool thrown = false;

	try {
		here.allocate(static_cast<std::size_t>(-1) / 4);
	} catch (const std::bad_array_new_length &) {
		thrown = true;
	}
	check(thrown, "a length that cannot be");
	thrown = false;
	try {
		std::vector<double, xasm::allocator<double>> large(1 << 20, here);
	} catch (const std::bad_alloc &) {
		thrown = true;
	}
	check(thrown, "more than the arena");
	check(here == xasm::allocator<char>(arena), "equal arenas");
	check(here != xasm::allocator<double>(arena + 1), "other arenas");
}

int main(int argc, char **argv)
{
	unsigned long steps = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 100;
	struct xasm_options options = {};
	uint64_t shape[] = {SLOTS, 3};
	struct xasm_usage usage;

	options.chunk_bytes = XASM_CHUNK_4K;
	options.policy = XASM_BLOCK;
	xasm_arena arena = xasm_arena_create("churn", UINT64_C(4) << 20, &options);
	if (arena < 0) {
		std::fprintf(stderr, "churn: no arena: %s\n", std::strerror(-arena));
		return 1;
	}
	mistakes(arena);
	{
		xasm::allocator<uint64_t> here(arena);
		words table(SLOTS * 3, 0, here);
		vectors all{std::less<uint64_t>(), here};
		std::mt19937_64 random(1);

		check(xasm_var(arena, "table", XASM_U64, 2, shape, 'C', table.data()) >= 0, "table");
		for (unsigned long step = 1; step <= steps; step++) {
			for (uint64_t i = 0; i < 20; i++)
				change(all, random, step << 32 | i << 16);
			tabulate(arena, all, table);
			check(xasm_publish(arena, step, static_cast<double>(step)) > 0, "publish");
		}
	}
	check(xasm_heap_usage(arena, &usage) == 0, "usage");
	check(usage.used == 0 && usage.blocks == 0, "something was not freed");
	std::printf("steps %lu  peak %llu\n", steps, static_cast<unsigned long long>(usage.peak));
	return 0;
}
