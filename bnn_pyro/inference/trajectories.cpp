// Trajectories of HMC from end to end, block after block of chains, without Python: what ``Leapfrogs`` in hmc_run.py does.

#include "leapfrog.h"

namespace {

// Of one thread's chains, field by field ``TrajectoryState`` in native_leapfrogs.py. Rows of ``dim`` numbers are float or double.
struct Trajectories {
    int64_t chains, dim, dense;
    void *position, *grad;     // (chains, dim): where they start, and then where they have come to,
    double *log_density;       // (chains,)
    void *momentum;            // (chains, dim)
    const double *step;        // (chains,), its size
    const void *inverse_mass;  // (dim,) or (dim, dim)
    void *velocity;            // (dim,), room for work
};

// 0, or the number of the gradient's call that failed.
template <class T>
int64_t go(const Trajectories *t, const Gradient *g, int64_t steps) {
    const int64_t dim = t->dim;
    T *speed = static_cast<T *>(t->velocity);
    for (int64_t from = 0; from < t->chains; from += g->block) {
        const int64_t rows = std::min(g->block, t->chains - from);
        T *position = static_cast<T *>(t->position) + from * dim;
        T *grad = static_cast<T *>(t->grad) + from * dim;
        T *momentum = static_cast<T *>(t->momentum) + from * dim;
        for (int64_t step = 0; step < steps; ++step) {
            for (int64_t i = 0; i < rows; ++i) {
                const T size = T(t->step[from + i]);
                add(momentum + i * dim, T(0.5) * size, grad + i * dim, dim);
                velocity(speed, momentum + i * dim, static_cast<const T *>(t->inverse_mass), t->dense, dim);
                add(position + i * dim, size, speed, dim);
            }
            if (const int64_t failed = gradients(g, rows, dim, position, grad, t->log_density + from)) return failed;
            for (int64_t i = 0; i < rows; ++i)
                add(momentum + i * dim, T(0.5) * T(t->step[from + i]), grad + i * dim, dim);
        }
    }
    return 0;
}

}  // namespace

#define ENTRIES(T, NAME)                                                                         \
    extern "C" int64_t go_##NAME(const Trajectories *t, const Gradient *g, int64_t steps) { \
        return go<T>(t, g, steps);                                                               \
    }

ENTRIES(float, float32)
ENTRIES(double, float64)
