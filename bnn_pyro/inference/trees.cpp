// The work of trees.py between two gradients, chain after chain, each touching what it needs at its leaf and no more.
//
// Names and layouts are those of trees.py and native_trees.py, which owns all memory; algorithm and use of random numbers
// are the same, so that both make the same trees of the same numbers. A chain's numbers depend on no other chain's.
//
//     r += e/2 grad,  z += e M^-1 r                      leap
//     (gradient at z, of all chains at once)
//     r += e/2 grad,  weigh, choose, look for turns      settle
//
// ``carry_on`` then does what walk.py does with the trees that ended, as far as it has the numbers to.

#include <chrono>
#include <cmath>
#include <limits>

#include "leapfrog.h"

namespace {

constexpr double DIVERGENCE = 1000.0;  // as in metric.py
constexpr double MINUS_INFINITY = -std::numeric_limits<double>::infinity();
enum Part { POSITION, GRAD, MOMENTUM, SUM };  // SUM: of momenta since the new leaves began, less half of the last

// Field by field the structure of the same name in native_trees.py. Rows of ``dim`` numbers are float or double.
struct State {
    int64_t chains, dim, slots, max_depth, dense;
    void *leaf;                  // (4, chains, dim)
    void *ends;                  // (3, 2 chains, dim): rows [0, chains) backward, [chains, 2 chains) forward
    void *chosen, *candidate;    // (2, chains, dim)
    void *sum;                   // (chains, dim)
    void *kept;                  // (2, chains slots, dim)
    void *inverse_mass;          // (dim,) or (dim, dim)
    void *velocity, *total;      // (dim,), room for work
    double *step_size, *energy, *accept_sum, *log_weight, *new_log_weight, *chosen_density, *candidate_density;
    int64_t *side, *depth, *leaves, *steps;
    uint8_t *diverging, *active;
    int64_t *ended;              // (chains,), filled by settle
};

// Field by field ``WalkState`` in native_walk.py. Trees that ended wait in position, figures, chain and number, which
// have room for as many.
struct Walk {
    int64_t warmup, until, ahead, ended, resting, left;
    double target, gamma, t0, kappa;
    const void *normals, *root;  // (chains ahead, dim), and (dim,) of a diagonal metric: a momentum is normal / root
    const int64_t *first;        // (chains,): the transition that a chain's first normals are for
    int64_t *transition;         // (chains,)
    const double *centre;        // (chains,) and
    double *averaging;           // (4, chains): of DualAveraging
    void *position;              // (room, dim)
    double *figures;             // (7, room): of Info
    int64_t *chain, *number;     // (room,)
    void *grad;                  // (chains, dim) and
    double *log_density;         // (chains,): room for gradients
};

double log_add_exp(double a, double b) {
    const double larger = std::fmax(a, b);
    return larger == MINUS_INFINITY ? larger : larger + std::log1p(std::exp(-std::fabs(a - b)));
}

int trailing_ones(int64_t n) {
    int count = 0;
    for (; n & 1; n >>= 1) ++count;
    return count;
}

int ones(int64_t n) {
    int count = 0;
    for (; n; n >>= 1) count += n & 1;
    return count;
}

// a . b in double, by eight sums side by side, which is an order of its own and a fast one.
template <class T>
double dot(const T *__restrict a, const T *__restrict b, int64_t dim) {
    double sums[8] = {};
    int64_t i = 0;
    for (; i + 8 <= dim; i += 8)
        for (int k = 0; k < 8; ++k) sums[k] += double(a[i + k]) * double(b[i + k]);
    for (int k = 0; i < dim; ++i, ++k) sums[k] += double(a[i]) * double(b[i]);
    return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

template <class T>
class Chain {
  public:
    Chain(const State &state, int64_t chain) : s(state), c(chain) {}

    // The first half of a leapfrog step.
    void leap() {
        T *momentum = leaf(MOMENTUM);
        add(leaf(SUM), T(0.5), momentum, s.dim);
        add(momentum, T(0.5) * step(), leaf(GRAD), s.dim);
        add(leaf(POSITION), step(), velocity(momentum), s.dim);
    }

    // The second half, with what it leads to; whether the tree ended. ``draw`` has this chain's uniform numbers.
    bool settle(const double *draw, const T *grad, double log_density) {
        T *momentum = leaf(MOMENTUM);
        copy(leaf(GRAD), grad);
        add(momentum, T(0.5) * step(), grad, s.dim);
        add(leaf(SUM), T(0.5), momentum, s.dim);

        const double energy = kinetic(momentum) - log_density;
        const bool finite = std::isfinite(energy) && std::isfinite(s.energy[c]);
        const double log_weight = finite ? s.energy[c] - energy : MINUS_INFINITY;
        s.accept_sum[c] += std::exp(std::fmin(log_weight, 0.0));
        s.steps[c] += 1;

        const double all = log_add_exp(s.new_log_weight[c], log_weight);
        s.new_log_weight[c] = all;
        if (draw[0] < std::exp(log_weight - all)) {  // false where both are minus infinity: their difference is NaN
            copy(row(s.candidate, POSITION, s.chains, c), leaf(POSITION));
            copy(row(s.candidate, GRAD, s.chains, c), leaf(GRAD));
            s.candidate_density[c] = log_density;
        }

        const bool diverges = log_weight <= -DIVERGENCE;
        s.diverging[c] |= diverges;
        const bool ends = diverges || turned_within();
        s.leaves[c] += 1;
        if (ends) {
            s.depth[c] += 1;  // a doubling that was begun counts
            return true;
        }
        return s.leaves[c] == int64_t(1) << s.depth[c] && join(draw);
    }

    // A tree from where the last one ended; ``momentum`` (dim,), ``coin`` says where it grows.
    void begin(const T *momentum, double coin) {
        for (int64_t side = 0; side < 2; ++side) {
            copy(end(POSITION, side), row(s.chosen, POSITION, s.chains, c));
            copy(end(GRAD, side), row(s.chosen, GRAD, s.chains, c));
            copy(end(MOMENTUM, side), momentum);
        }
        copy(row(s.sum, 0, s.chains, c), momentum);
        s.energy[c] = kinetic(momentum) - s.chosen_density[c];
        s.log_weight[c] = s.accept_sum[c] = 0.0;
        s.depth[c] = s.steps[c] = 0;
        s.diverging[c] = 0;
        s.active[c] = 1;
        grow(coin);
    }

  private:
    const State &s;
    const int64_t c;

    T *row(void *base, int64_t part, int64_t rows, int64_t which) const {
        return static_cast<T *>(base) + (part * rows + which) * s.dim;
    }
    T *leaf(Part part) const { return row(s.leaf, part, s.chains, c); }
    T *end(Part part, int64_t side) const { return row(s.ends, part, 2 * s.chains, side * s.chains + c); }
    T *kept(int64_t part, int64_t slot) const { return row(s.kept, part, s.chains * s.slots, c * s.slots + slot); }
    void copy(T *to, const T *from) const { std::memcpy(to, from, s.dim * sizeof(T)); }
    T step() const { return T(s.side[c] ? s.step_size[c] : -s.step_size[c]); }
    double kinetic(const T *momentum) const { return 0.5 * dot(velocity(momentum), momentum, s.dim); }

    // M^-1 r; good until the next call.
    const T *velocity(const T *momentum) const {
        T *out = static_cast<T *>(s.velocity);
        ::velocity(out, momentum, static_cast<const T *>(s.inverse_mass), s.dense, s.dim);
        return out;
    }

    // Adds leaves at the end that the coin says.
    void grow(double coin) {
        const int64_t side = coin < 0.5;
        s.side[c] = side;
        copy(leaf(POSITION), end(POSITION, side));
        copy(leaf(GRAD), end(GRAD, side));
        copy(leaf(MOMENTUM), end(MOMENTUM, side));
        std::memset(leaf(SUM), 0, s.dim * sizeof(T));
        add(leaf(SUM), T(-0.5), leaf(MOMENTUM), s.dim);
        s.leaves[c] = 0;
        s.new_log_weight[c] = MINUS_INFINITY;
    }

    // Whether an aligned part of the new leaves, ending at the last one, turned back on itself.
    bool turned_within() {
        const int64_t n = s.leaves[c], slot = ones(n >> 1);
        if (n % 2 == 0) {  // where parts begin
            copy(kept(0, slot), leaf(MOMENTUM));
            copy(kept(1, slot), leaf(SUM));
            return false;
        }
        T *total = static_cast<T *>(s.total);
        for (int64_t part = 0; part < trailing_ones(n); ++part) {
            copy(total, leaf(SUM));
            add(total, T(-1), kept(1, slot - part), s.dim);
            if (turns(total, kept(0, slot - part), leaf(MOMENTUM))) return true;
        }
        return false;
    }

    bool turns(const T *total, const T *first, const T *last) const {
        const T *v = velocity(total);
        return dot(v, first, s.dim) <= 0 || dot(v, last, s.dim) <= 0;
    }

    // Joins a complete set of new leaves to the tree; whether it ends, and if not, it grows on.
    bool join(const double *draw) {
        if (draw[1] < std::exp(s.new_log_weight[c] - s.log_weight[c])) {
            copy(row(s.chosen, POSITION, s.chains, c), row(s.candidate, POSITION, s.chains, c));
            copy(row(s.chosen, GRAD, s.chains, c), row(s.candidate, GRAD, s.chains, c));
            s.chosen_density[c] = s.candidate_density[c];
        }
        s.log_weight[c] = log_add_exp(s.log_weight[c], s.new_log_weight[c]);
        copy(end(POSITION, s.side[c]), leaf(POSITION));
        copy(end(GRAD, s.side[c]), leaf(GRAD));
        copy(end(MOMENTUM, s.side[c]), leaf(MOMENTUM));

        T *sum = row(s.sum, 0, s.chains, c), *total = static_cast<T *>(s.total);
        add(sum, T(1), leaf(SUM), s.dim);
        add(sum, T(0.5), leaf(MOMENTUM), s.dim);
        copy(total, sum);
        add(total, T(-0.5), end(MOMENTUM, 0), s.dim);
        add(total, T(-0.5), end(MOMENTUM, 1), s.dim);
        s.depth[c] += 1;
        if (turns(total, end(MOMENTUM, 0), end(MOMENTUM, 1)) || s.depth[c] >= s.max_depth) return true;
        grow(draw[2]);
        return false;
    }
};

template <class T>
void leap(const State *s) {
    for (int64_t c = 0; c < s->chains; ++c)
        if (s->active[c]) Chain<T>(*s, c).leap();
}

template <class T>
int64_t settle(const State *s, const double *draws, const T *grad, const double *log_density) {
    int64_t count = 0;
    for (int64_t c = 0; c < s->chains; ++c)
        if (s->active[c] && Chain<T>(*s, c).settle(draws + 4 * c, grad + c * s->dim, log_density[c]))
            s->ended[count++] = c;
    return count;
}

// torch's formula, so that rounding is the same
double lerp(double from, double to, double weight) {
    return weight < 0.5 ? from + weight * (to - from) : to - (to - from) * (1.0 - weight);
}

// A transition of dual averaging, as in step_sizes.py; what chain ``c`` is to step by from now on.
double adapted_step(const Walk &w, int64_t chains, int64_t c, double rate, bool last) {
    double *count = w.averaging + c, *error = count + chains, *log_step = error + chains, *log_average = log_step + chains;
    *count += 1.0;
    *error = lerp(*error, w.target - rate, 1.0 / (*count + w.t0));
    *log_step = w.centre[c] - std::sqrt(*count) / w.gamma * *error;
    *log_average = lerp(*log_average, *log_step, std::pow(*count, -w.kappa));
    return std::exp(last ? *log_average : *log_step);
}

// Notes down the ``count`` trees that ended, and begins the next one in their chains. Those that it cannot begin are left
// in ``ended``; how many.
template <class T>
int64_t carry_on(const State *s, Walk *w, int64_t count, int64_t room, const double *draws) {
    int64_t left = 0;
    for (int64_t i = 0; i < count; ++i) {
        const int64_t c = s->ended[i], at = w->ended++;
        const double rate = s->accept_sum[c] / double(s->steps[c]);
        const double figures[] = {s->chosen_density[c],   s->energy[c], double(s->diverging[c]), double(s->depth[c]),
                                  double(s->steps[c]), rate,         s->step_size[c]};
        for (int k = 0; k < 7; ++k) w->figures[k * room + at] = figures[k];
        std::memcpy(static_cast<T *>(w->position) + at * s->dim, static_cast<T *>(s->chosen) + c * s->dim, s->dim * sizeof(T));
        w->chain[at] = c;
        w->number[at] = w->transition[c];

        const int64_t now = ++w->transition[c];
        if (now <= w->warmup) s->step_size[c] = adapted_step(*w, s->chains, c, rate, now == w->warmup);
        const int64_t row = now - w->first[c];
        if (now >= w->until) {
            s->active[c] = 0;
            s->leaves[c] = 0;
            w->resting += 1;
        } else if (s->dense || row >= w->ahead) {
            s->ended[left++] = c;
        } else {
            const T *normal = static_cast<const T *>(w->normals) + (c * w->ahead + row) * s->dim;
            const T *root = static_cast<const T *>(w->root);
            T *momentum = static_cast<T *>(s->total);
            for (int64_t j = 0; j < s->dim; ++j) momentum[j] = normal[j] / root[j];
            Chain<T>(*s, c).begin(momentum, draws[4 * c + 2]);
        }
    }
    return left;
}

// Leapfrog steps of all chains, ``steps`` or fewer, with the uniform numbers of each, (steps, chains, 4): to the end of that
// tree after which Python has something to do, or for ``patience`` seconds. How many were made; -1 if a gradient failed.
template <class T>
int64_t go(const State *s, Walk *w, const Gradient *g, int64_t steps, int64_t room, const double *draws, double patience) {
    const auto begun = std::chrono::steady_clock::now();
    const int64_t dim = s->dim, most = room - s->chains;
    w->left = 0;
    for (int64_t step = 0; step < steps;) {
        leap<T>(s);
        for (int64_t from = 0; from < s->chains; from += g->block) {
            const int64_t rows = std::min(g->block, s->chains - from);
            if (!std::any_of(s->active + from, s->active + from + rows, [](uint8_t active) { return active; })) continue;
            const T *position = static_cast<const T *>(s->leaf) + from * dim;
            if (gradients(g, rows, dim, position, static_cast<T *>(w->grad) + from * dim, w->log_density + from)) return -1;
        }
        const double *draw = draws + 4 * s->chains * step++;
        const int64_t count = settle<T>(s, draw, static_cast<const T *>(w->grad), w->log_density);
        if (count) w->left = carry_on<T>(s, w, count, room, draw);
        if (w->left || w->ended > most || w->resting == s->chains) return step;
        if (std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count() > patience) return step;
    }
    return steps;
}

template <class T>
void begin(const State *s, int64_t count, const int64_t *rows, const T *momenta, const double *draws) {
    for (int64_t i = 0; i < count; ++i) Chain<T>(*s, rows[i]).begin(momenta + i * s->dim, draws[4 * rows[i] + 2]);
}

}  // namespace

#define ENTRIES(T, NAME)                                                                                          \
    extern "C" void leap_##NAME(const State *s) { leap<T>(s); }                                                   \
    extern "C" int64_t settle_##NAME(const State *s, const double *draws, const T *grad, const double *density) { \
        return settle<T>(s, draws, grad, density);                                                                \
    }                                                                                                             \
    extern "C" void begin_##NAME(const State *s, int64_t count, const int64_t *rows, const T *momenta,            \
                                 const double *draws) {                                                           \
        begin<T>(s, count, rows, momenta, draws);                                                                 \
    }                                                                                                             \
    extern "C" int64_t carry_on_##NAME(const State *s, Walk *w, int64_t count, int64_t room, const double *draws) { \
        return carry_on<T>(s, w, count, room, draws);                                                             \
    }                                                                                                             \
    extern "C" int64_t go_##NAME(const State *s, Walk *w, const Gradient *g, int64_t steps, int64_t room,         \
                                 const double *draws, double patience) {                                          \
        return go<T>(s, w, g, steps, room, draws, patience);                                                      \
    }

ENTRIES(float, float32)
ENTRIES(double, float64)
