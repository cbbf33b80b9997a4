// Streams, containers and exceptions of C++.
//
// Usage: iostreams [uncaught|EXIT_CODE]
#include <algorithm>
#include <cstdlib>
#include <iomanip>
#include <iostream>
#include <map>
#include <memory>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

namespace {

struct Guard {
    explicit Guard(std::string name) : name(std::move(name)) {}
    ~Guard() { std::cout << "unwound " << name << '\n'; }
    std::string name;
};

struct Shape {
    virtual ~Shape() = default;
    virtual double area() const = 0;
};

struct Square : Shape {
    explicit Square(double side) : side(side) {}
    double area() const override { return side * side; }
    double side;
};

[[noreturn]] void fail(int depth)
{
    Guard guard("frame " + std::to_string(depth));
    if (depth == 0)
        throw std::out_of_range("thrown at the bottom");
    fail(depth - 1);
}

void use_containers()
{
    std::map<std::string, int> words;
    std::istringstream text("the cat and the dog and the bird");
    for (std::string word; text >> word;)
        ++words[word];
    for (const auto &[word, count] : words)
        std::cout << word << '=' << count << ' ';
    std::cout << '\n';
    std::vector<int> numbers(1000);
    std::iota(numbers.begin(), numbers.end(), -500);
    std::sort(numbers.begin(), numbers.end(),
              [](int a, int b) { return std::abs(a) != std::abs(b) ? std::abs(a) < std::abs(b) : a < b; });
    std::cout << numbers[0] << ' ' << numbers[1] << ' ' << numbers[2] << ' ' << numbers.back() << '\n';
    std::unordered_map<int, std::string> lookup;
    for (int i = 0; i < 10000; ++i)
        lookup[i * 7919] = std::to_string(i);
    std::cout << lookup.size() << ' ' << lookup.at(7919 * 4321) << '\n';
    std::vector<std::unique_ptr<Shape>> shapes;
    for (int i = 1; i <= 4; ++i)
        shapes.push_back(std::make_unique<Square>(i * 0.5));
    double sum = 0;
    for (const auto &shape : shapes)
        sum += shape->area();
    std::cout << std::setprecision(17) << sum << ' ' << 0.1 << ' ' << std::hexfloat << 1.5
              << std::defaultfloat << ' ' << std::hex << std::showbase << 48879 << std::dec << '\n';
}

void use_exceptions()
{
    try {
        fail(3);
    } catch (const std::exception &error) {
        std::cout << "caught " << error.what() << '\n';
    }
    try {
        try {
            throw std::runtime_error("inner");
        } catch (const std::logic_error &) {
            std::cout << "wrong handler\n";
        } catch (...) {
            std::throw_with_nested(std::logic_error("outer"));
        }
    } catch (const std::logic_error &error) {
        std::cout << error.what();
        try {
            std::rethrow_if_nested(error);
        } catch (const std::runtime_error &inner) {
            std::cout << " around " << inner.what() << '\n';
        }
    }
    try {
        std::vector<int>().at(3);
    } catch (const std::out_of_range &) {
        std::cout << "out of range\n";
    }
    try {
        std::vector<char> huge(std::size_t(1) << 60);
    } catch (const std::bad_alloc &) {
        std::cout << "out of memory\n";
    }
}

} // namespace

int main(int argc, char **argv)
{
    use_containers();
    use_exceptions();
    const std::string how = argc > 1 ? argv[1] : "0";
    if (how == "uncaught") {
        std::cout << "about to throw" << std::endl;
        throw std::runtime_error("nobody catches this");
    }
    return std::stoi(how);
}
