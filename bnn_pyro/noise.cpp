// Philox4x32-10 as in noise.py, bit for bit: a row of numbers for each pair of chain and step.
//
// Eight counters are worked side by side, so that the compiler fills vectors.

#include <cstdint>

namespace {

constexpr uint32_t MULTIPLIER_0 = 0xD2511F53, MULTIPLIER_1 = 0xCD9E8D57, WEYL_0 = 0x9E3779B9, WEYL_1 = 0xBB67AE85;
constexpr int ROUNDS = 10, SIDE = 8;

// Words 4 (block + i) + j of a row into words[i][j].
void philox(uint32_t block, uint64_t step, uint32_t chain, uint32_t key0, uint32_t key1, uint32_t words[SIDE][4]) {
    uint32_t c0[SIDE], c1[SIDE], c2[SIDE], c3[SIDE];
    for (int i = 0; i < SIDE; ++i) {
        c0[i] = block + i;
        c1[i] = uint32_t(step);
        c2[i] = uint32_t(step >> 32);
        c3[i] = chain;
    }
    for (int round = 0; round < ROUNDS; ++round, key0 += WEYL_0, key1 += WEYL_1)
        for (int i = 0; i < SIDE; ++i) {
            const uint64_t product0 = uint64_t(c0[i]) * MULTIPLIER_0, product1 = uint64_t(c2[i]) * MULTIPLIER_1;
            c0[i] = uint32_t(product1 >> 32) ^ c1[i] ^ key0;
            c1[i] = uint32_t(product1);
            c2[i] = uint32_t(product0 >> 32) ^ c3[i] ^ key1;
            c3[i] = uint32_t(product0);
        }
    for (int i = 0; i < SIDE; ++i) {
        words[i][0] = c0[i];
        words[i][1] = c1[i];
        words[i][2] = c2[i];
        words[i][3] = c3[i];
    }
}

template <class T, class Convert>
void fill(int64_t rows, int64_t count, const int64_t *chains, const int64_t *steps, uint32_t key0, uint32_t key1, T *out,
          Convert convert) {
    uint32_t words[SIDE][4];
    for (int64_t row = 0; row < rows; ++row, out += count)
        for (int64_t at = 0; at < count; at += 4 * SIDE) {
            philox(uint32_t(at / 4), uint64_t(steps[row]), uint32_t(chains[row]), key0, key1, words);
            const int64_t left = count - at < 4 * SIDE ? count - at : 4 * SIDE;
            for (int64_t i = 0; i < left; ++i) out[at + i] = convert(words[i / 4][i % 4]);
        }
}

}  // namespace

extern "C" void philox_words(int64_t rows, int64_t count, const int64_t *chains, const int64_t *steps, uint32_t key0,
                             uint32_t key1, int64_t *out) {
    fill(rows, count, chains, steps, key0, key1, out, [](uint32_t word) { return int64_t(word); });
}

extern "C" void philox_uniforms(int64_t rows, int64_t count, const int64_t *chains, const int64_t *steps, uint32_t key0,
                                uint32_t key1, double *out) {
    fill(rows, count, chains, steps, key0, key1, out, [](uint32_t word) { return (double(word) + 0.5) * 0x1p-32; });
}
