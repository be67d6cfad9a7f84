// Goes through the calls that recorded.py has noted down of compiled code: functions of pointers alone, one after another.

#include <cstddef>
#include <cstdint>
#include <utility>

namespace {

// Field by field ``Call`` in recorded.py.
struct Call {
    int64_t checked;  // whether it returns an error code, as what torch's C interface has does
    void *function;
    int64_t count;
    void **arguments;
};

constexpr size_t MOST = 128;  // arguments, as in recorded.py

template <size_t>
using Pointer = void *;

template <size_t... I>
void call(void *function, void **arguments, std::index_sequence<I...>) {
    reinterpret_cast<void (*)(Pointer<I>...)>(function)(arguments[I]...);
}

template <size_t N>
void call_with(void *function, void **arguments) {
    call(function, arguments, std::make_index_sequence<N>());
}

using Caller = void (*)(void *, void **);

template <size_t... N>
Caller caller(int64_t count, std::index_sequence<N...>) {
    static constexpr Caller callers[] = {&call_with<N>...};
    return callers[count];
}

}  // namespace

// 0, or the number of the call, from 1, that failed.
extern "C" int64_t run_calls(const Call *calls, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        const Call &c = calls[i];
        if (!c.checked) {
            try {
                caller(c.count, std::make_index_sequence<MOST + 1>())(c.function, c.arguments);
            } catch (...) {  // kernels check what they look up; nothing may be thrown at Python
                return i + 1;
            }
        } else if (reinterpret_cast<int32_t (*)(void *, void *, void *)>(c.function)(c.arguments[0], c.arguments[1], c.arguments[2])) {
            return i + 1;
        }
    }
    return 0;
}
