// What trees.cpp and trajectories.cpp share: a leapfrog step's operations on one chain, and gradients by recorded calls.
//
// Built without licence to reorder sums: results must not depend on how a compiler splits a loop.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace {

// Field by field ``GradientState`` in native_gradient.py: ``run(calls, count)`` takes a block of positions to gradients and
// log densities.
struct Gradient {
    int64_t (*run)(const void *, int64_t);
    const void *calls;
    int64_t count, block;
    int64_t row, column;         // numbers from one row of grad to the next, and from one column
    void *position;              // (block, dim)
    const void *grad;            // (block, dim); compiled code may lay it column by column
    const double *log_density;   // (block,)
};

// Of chains that may be fewer than a block: grad (rows, dim) and log_density (rows,) at position (rows, dim); 0, or the number
// of the call that failed. What is in the block's other rows touches none of these.
template <class T>
int64_t gradients(const Gradient *g, int64_t rows, int64_t dim, const T *position, T *grad, double *log_density) {
    std::memcpy(g->position, position, rows * dim * sizeof(T));
    if (const int64_t failed = g->run(g->calls, g->count)) return failed;
    const T *found = static_cast<const T *>(g->grad);
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < dim; ++j) grad[i * dim + j] = found[i * g->row + j * g->column];
    std::memcpy(log_density, g->log_density, rows * sizeof(double));
    return 0;
}

// y += factor x
template <class T>
void add(T *__restrict y, T factor, const T *__restrict x, int64_t dim) {
    for (int64_t i = 0; i < dim; ++i) y[i] += factor * x[i];
}

// out = M^-1 momentum, for M^-1 (dim,) or (dim, dim).
template <class T>
void velocity(T *__restrict out, const T *__restrict momentum, const T *__restrict inverse_mass, bool dense, int64_t dim) {
    if (dense) {  // symmetric, so that rows may stand for columns
        std::memset(out, 0, dim * sizeof(T));
        for (int64_t i = 0; i < dim; ++i) add(out, momentum[i], inverse_mass + i * dim, dim);
    } else {
        for (int64_t i = 0; i < dim; ++i) out[i] = inverse_mass[i] * momentum[i];
    }
}

}  // namespace
