/* Passes over float32 values on a CPU that torch makes one after another, here in one; fused.py compiles and calls them,
   and says what they do without it. Every operation is the one of IEEE 754 that torch makes, in torch's order: the bits
   are the same, but for the sums, which are more exact. All memory is the caller's, contiguous. */

#include <math.h>
#include <stdint.h>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

#define LANES 8 /* rows are looked through in so many columns at once: one running minimum would wait for itself */

/* x = x * mask, of bytes 0 and 1. */
FOR_EACH_PROCESSOR
void forgepress_masked(int64_t count, float *restrict x, const uint8_t *restrict mask)
{
    for (int64_t i = 0; i < count; i++)
        x[i] = x[i] * (float)mask[i];
}

/* mask = 1 above `high`, 0 at or below `low`, what it was between; of the magnitudes. */
FOR_EACH_PROCESSOR
void forgepress_splice(int64_t count, const float *restrict dense, uint8_t *restrict mask, float low, float high)
{
    for (int64_t i = 0; i < count; i++) {
        float magnitude = fabsf(dense[i]);
        mask[i] = (uint8_t)((magnitude > high) | ((magnitude > low) & mask[i]));
    }
}

/* x = the nearest of the values (lowest ... highest) * scale; rows of `width` with a scale each. */
FOR_EACH_PROCESSOR
void forgepress_snap(int64_t rows, int64_t width, float *restrict x, const float *restrict scales, float lowest,
                     float highest)
{
    for (int64_t row = 0; row < rows; row++, x += width) {
        float scale = scales[row];
        for (int64_t i = 0; i < width; i++) {
            float level = rintf(x[i] / scale);
            level = level < lowest ? lowest : level;
            level = level > highest ? highest : level;
            x[i] = level * scale;
        }
    }
}

/* y = the nearest of the values (lowest ... highest) * scale; low, high: the ends of each row of x, NaN where it has
   one. */
FOR_EACH_PROCESSOR
void forgepress_rounded(int64_t rows, int64_t width, const float *restrict x, float *restrict y, float scale,
                        float lowest, float highest, float *restrict low, float *restrict high)
{
    for (int64_t row = 0; row < rows; row++, x += width, y += width) {
        float least[LANES], most[LANES];
        int32_t odd[LANES];
        for (int64_t lane = 0; lane < LANES; lane++) {
            least[lane] = INFINITY;
            most[lane] = -INFINITY;
            odd[lane] = 0;
        }
        int64_t whole = width - width % LANES;
        for (int64_t i = 0; i < whole; i += LANES)
            for (int64_t lane = 0; lane < LANES; lane++) {
                float value = x[i + lane], level = rintf(value / scale);
                least[lane] = value < least[lane] ? value : least[lane];
                most[lane] = value > most[lane] ? value : most[lane];
                odd[lane] |= value != value;
                level = level < lowest ? lowest : level;
                level = level > highest ? highest : level;
                y[i + lane] = level * scale;
            }
        for (int64_t i = whole; i < width; i++) {
            float value = x[i], level = rintf(value / scale);
            least[0] = value < least[0] ? value : least[0];
            most[0] = value > most[0] ? value : most[0];
            odd[0] |= value != value;
            level = level < lowest ? lowest : level;
            level = level > highest ? highest : level;
            y[i] = level * scale;
        }
        int32_t strange = odd[0];
        for (int64_t lane = 1; lane < LANES; lane++) {
            least[0] = least[lane] < least[0] ? least[lane] : least[0];
            most[0] = most[lane] > most[0] ? most[lane] : most[0];
            strange |= odd[lane];
        }
        low[row] = strange ? NAN : least[0];
        high[row] = strange ? NAN : most[0];
    }
}

/* sums = the magnitudes and the squares of x, added up as doubles. */
FOR_EACH_PROCESSOR
void forgepress_sums(int64_t count, const float *restrict x, double *restrict sums)
{
    double magnitudes[LANES] = {0}, squares[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int64_t lane = 0; lane < LANES; lane++) {
            double value = (double)x[i + lane];
            magnitudes[lane] += fabs(value);
            squares[lane] += value * value;
        }
    for (int64_t lane = 0; i < count; i++, lane++) {
        magnitudes[lane] += fabs((double)x[i]);
        squares[lane] += (double)x[i] * (double)x[i];
    }
    sums[0] = sums[1] = 0.0;
    for (int64_t lane = 0; lane < LANES; lane++) {
        sums[0] += magnitudes[lane];
        sums[1] += squares[lane];
    }
}

/* y = l1 * sign(x) + l2 * x; without the second term where l2 is 0. */
FOR_EACH_PROCESSOR
void forgepress_slopes(int64_t count, const float *restrict x, float *restrict y, float l1, float l2)
{
    if (l2 == 0.0f)
        for (int64_t i = 0; i < count; i++)
            y[i] = (float)((x[i] > 0.0f) - (x[i] < 0.0f)) * l1;
    else
        for (int64_t i = 0; i < count; i++)
            y[i] = (float)((x[i] > 0.0f) - (x[i] < 0.0f)) * l1 + l2 * x[i];
}
