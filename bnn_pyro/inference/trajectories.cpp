// Trajectories of HMC from end to end, block after block of chains, without Python: what ``Leapfrogs`` in leapfrogs.py does.

#include <chrono>

#include "leapfrog.h"

namespace {

// Of one thread's chains, field by field ``TrajectoryState`` in native_leapfrogs.py. Rows of ``dim`` numbers are float or double.
struct Trajectories {
    int64_t chains, dim, dense;
    int64_t chain, taken;      // the first one of the block that is on its way, and the steps that it has taken
    void *position, *grad;     // (chains, dim): where they start, and then where they have come to,
    double *log_density;       // (chains,)
    void *momentum;            // (chains, dim)
    const double *step;        // (chains,), its size
    const void *inverse_mass;  // (dim,) or (dim, dim)
    void *velocity;            // (dim,), room for work
};

enum Outcome { FAILED = -1, ARRIVED, TO_GO_ON };

// Takes all chains ``steps`` leapfrog steps, or one or more of them for ``patience`` seconds: then it is to be called again.
template <class T>
int64_t go(Trajectories *t, const Gradient *g, int64_t steps, double patience) {
    const auto begun = std::chrono::steady_clock::now();
    const int64_t dim = t->dim;
    T *speed = static_cast<T *>(t->velocity);
    for (; t->chain < t->chains; t->chain += g->block, t->taken = 0) {
        const int64_t from = t->chain, rows = std::min(g->block, t->chains - from);
        T *position = static_cast<T *>(t->position) + from * dim;
        T *grad = static_cast<T *>(t->grad) + from * dim;
        T *momentum = static_cast<T *>(t->momentum) + from * dim;
        while (t->taken < steps) {
            for (int64_t i = 0; i < rows; ++i) {
                const T size = T(t->step[from + i]);
                add(momentum + i * dim, T(0.5) * size, grad + i * dim, dim);
                velocity(speed, momentum + i * dim, static_cast<const T *>(t->inverse_mass), t->dense, dim);
                add(position + i * dim, size, speed, dim);
            }
            if (gradients(g, rows, dim, position, grad, t->log_density + from)) return FAILED;
            for (int64_t i = 0; i < rows; ++i)
                add(momentum + i * dim, T(0.5) * T(t->step[from + i]), grad + i * dim, dim);
            ++t->taken;
            if (std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count() > patience) return TO_GO_ON;
        }
    }
    return ARRIVED;
}

}  // namespace

#define ENTRIES(T, NAME)                                                                               \
    extern "C" int64_t go_##NAME(Trajectories *t, const Gradient *g, int64_t steps, double patience) { \
        return go<T>(t, g, steps, patience);                                                           \
    }

ENTRIES(float, float32)
ENTRIES(double, float64)
