/* Copies and plans that Python is too slow for; native.py compiles and calls them, and says what they do without it.

   Numbers of rows are checked here and nowhere else: a function that meets one that is not there returns its place (else -1).
   Addresses and sizes are the caller's word. All memory is given by the caller but for scratch, which is freed. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define AHEAD 12   /* rows asked of main memory before they are copied */
#define LINE 64    /* bytes that come from memory at once */
#define FETCHED 2048 /* bytes of a row that are asked for; the processor goes on by itself */

static void fetch(const char *from, int64_t bytes)
{
    for (int64_t at = 0; at < bytes && at < FETCHED; at += LINE)
        __builtin_prefetch(from + at);
}

/* out[i] = the `width` bytes at source + unit * (table ? table[rows[i]] : rows[i]). */
int64_t forgepress_rows(int64_t count, const int64_t *rows, int64_t total, const int64_t *table, int64_t unit,
                        int64_t width, const char *source, char *out)
{
    for (int64_t i = 0; i < count; i++)
        if (rows[i] < 0 || rows[i] >= total)
            return i;
    for (int64_t i = 0; i < count; i++) {
        if (i + AHEAD < count) {
            int64_t next = rows[i + AHEAD];
            fetch(source + unit * (table ? table[next] : next), width);
        }
        memcpy(out + i * width, source + unit * (table ? table[rows[i]] : rows[i]), (size_t)width);
    }
    return -1;
}

/* out[i] = the first `width` values (of `item` bytes) of row rows[i], filled up with zero bytes. */
int64_t forgepress_padded(int64_t count, const int64_t *rows, int64_t total, const int64_t *starts,
                          const int64_t *lengths, int64_t item, int64_t width, const char *source, char *out)
{
    for (int64_t i = 0; i < count; i++)
        if (rows[i] < 0 || rows[i] >= total)
            return i;
    for (int64_t i = 0; i < count; i++) {
        if (i + AHEAD < count) {
            int64_t next = rows[i + AHEAD];
            fetch(source + starts[next] * item, lengths[next] * item);
        }
        int64_t length = lengths[rows[i]] < width ? lengths[rows[i]] : width;
        memcpy(out, source + starts[rows[i]] * item, (size_t)(length * item));
        memset(out + length * item, 0, (size_t)((width - length) * item));
        out += width * item;
    }
    return -1;
}

/* The `lengths[i]` values from begin[i] on go to places[i] of out. */
void forgepress_runs(int64_t count, const int64_t *begin, const int64_t *lengths, const int64_t *places, int64_t item,
                     const char *source, char *out)
{
    for (int64_t i = 0; i < count; i++) {
        if (i + AHEAD < count)
            fetch(source + begin[i + AHEAD] * item, lengths[i + AHEAD] * item);
        memcpy(out + places[i] * item, source + begin[i] * item, (size_t)(lengths[i] * item));
    }
}

/* Beside packed tokens [count, length]: the number of each token's document in its row (from 1) and its position in
   the document. Where a row ends early, both are 0 and the token becomes the `item` bytes of `padding`.
   Pieces are ordered by row and place, and leave no gap between them. */
void forgepress_marks(int64_t pieces, const int64_t *first, const int64_t *lengths, const int64_t *rows, int64_t count,
                      int64_t length, int64_t item, const char *padding, int32_t *document, int32_t *position,
                      char *tokens)
{
    int64_t piece = 0;
    for (int64_t row = 0; row < count; row++) {
        int64_t at = row * length, end = at + length;
        for (int32_t number = 1; piece < pieces && rows[piece] == row; piece++, number++) {
            int32_t begin = (int32_t)first[piece];
            int64_t size = lengths[piece];
            for (int64_t i = 0; i < size; i++)
                document[at + i] = number;
            for (int64_t i = 0; i < size; i++)
                position[at + i] = begin + (int32_t)i;
            at += size;
        }
        memset(document + at, 0, (size_t)(end - at) * sizeof(int32_t));
        memset(position + at, 0, (size_t)(end - at) * sizeof(int32_t));
        for (; at < end; at++)
            memcpy(tokens + at * item, padding, (size_t)item);
    }
}

/* Best fit decreasing (Johnson 1974): pieces of `sizes` (1 to length) into rows of `length`, the longest first, each
   into the fullest row that still has room; of equally full ones the one that became so last. Rows are numbered by
   their first piece. final, rows, places [count]: the pieces by row and place. Returns the number of rows, -1 where
   there is no memory. */
int64_t forgepress_best_fit(int64_t count, const int64_t *sizes, int64_t length, int64_t *final, int64_t *rows,
                            int64_t *places)
{
    int64_t words = length / 64 + 1, used = 0, named = 0;
    int64_t *scratch = calloc((size_t)(2 * (length + 2) + 6 * (count + 1) + words), sizeof(int64_t));
    if (!scratch)
        return -1;
    int64_t *of_size = scratch, *newest = of_size + length + 2; /* newest row with each room, -1: none */
    int64_t *order = newest + length + 2, *older = order + count + 1, *row_of = older + count + 1;
    int64_t *place_of = row_of + count + 1, *names = place_of + count + 1, *ends = names + count + 1;
    uint64_t *rooms = (uint64_t *)(ends + count + 1); /* bit r: some row has room r */

    for (int64_t i = 0; i < count; i++) /* stable, by size from the largest on */
        of_size[length - sizes[i] + 1]++;
    for (int64_t size = 1; size <= length; size++)
        of_size[size] += of_size[size - 1];
    for (int64_t i = 0; i < count; i++)
        order[of_size[length - sizes[i]]++] = i;
    for (int64_t room = 0; room <= length; room++)
        newest[room] = -1;

    for (int64_t i = 0; i < count; i++) {
        int64_t piece = order[i], size = sizes[piece], word = size / 64, row, room;
        uint64_t bits = rooms[word] & (~(uint64_t)0 << (size % 64));
        while (!bits && ++word < words)
            bits = rooms[word];
        if (bits) {
            room = word * 64 + __builtin_ctzll(bits);
            row = newest[room];
            newest[room] = older[row];
            if (newest[room] < 0)
                rooms[word] &= ~((uint64_t)1 << (room % 64));
        } else {
            room = length;
            row = used++;
        }
        row_of[piece] = row;
        place_of[piece] = length - room;
        if (room > size) {
            older[row] = newest[room - size];
            newest[room - size] = row;
            rooms[(room - size) / 64] |= (uint64_t)1 << ((room - size) % 64);
        }
    }

    memset(names, 0xff, (size_t)(used * (int64_t)sizeof(int64_t)));
    for (int64_t i = 0; i < count; i++) {
        if (names[row_of[i]] < 0)
            names[row_of[i]] = named++;
        row_of[i] = names[row_of[i]];
        ends[row_of[i] + 1]++;
    }
    for (int64_t row = 0; row < used; row++)
        ends[row + 1] += ends[row];
    for (int64_t i = 0; i < count; i++) { /* pieces of a row were placed in this order */
        int64_t piece = order[i], at = ends[row_of[piece]]++;
        final[at] = piece;
        rows[at] = row_of[piece];
        places[at] = place_of[piece];
    }
    free(scratch);
    return used;
}

/* forms[i] = height, width and number of colours that the JPEG picture of row rows[i] says of itself; zeros where it is
   no JPEG of 8 bits a colour, or its frame is not where it should be. */
int64_t forgepress_jpeg_forms(int64_t count, const int64_t *rows, int64_t total, const int64_t *starts,
                              const int64_t *lengths, const unsigned char *source, int64_t *forms)
{
    for (int64_t i = 0; i < count; i++)
        if (rows[i] < 0 || rows[i] >= total)
            return i;
    for (int64_t i = 0; i < count; i++, forms += 3) {
        const unsigned char *at = source + starts[rows[i]], *end = at + lengths[rows[i]];
        forms[0] = forms[1] = forms[2] = 0;
        if (end - at < 4 || at[0] != 0xFF || at[1] != 0xD8)
            continue;
        at += 2;
        while (end - at >= 10 && at[0] == 0xFF) { /* a segment: 0xFF, its kind, two bytes of length, what it says */
            int kind = at[1];
            if (kind == 0xFF) { /* filling */
                at++;
                continue;
            }
            if (kind >= 0xC0 && kind <= 0xCF && kind != 0xC4 && kind != 0xC8 && kind != 0xCC) { /* a frame */
                if (at[4] == 8) {
                    forms[0] = at[5] << 8 | at[6];
                    forms[1] = at[7] << 8 | at[8];
                    forms[2] = at[9];
                }
                break;
            }
            if (kind < 0xC0 || kind == 0xD9 || kind == 0xDA) /* no segment that could stand before a frame */
                break;
            at += 2 + (at[2] << 8 | at[3]);
        }
    }
    return -1;
}

static uint32_t mixed(uint32_t bits, uint32_t word)
{
    bits ^= word;
    bits ^= bits >> 16;
    bits *= 0x85EBCA6Bu;
    bits ^= bits >> 13;
    bits *= 0xC2B2AE35u;
    return bits ^ (bits >> 16);
}

/* out[i] = the permutation of `bijection.Permutation` at positions[i]. */
void forgepress_permuted(int64_t count, const int64_t *positions, uint64_t size, uint64_t base, int64_t rounds,
                         const uint32_t *words, int64_t *out)
{
    for (int64_t i = 0; i < count; i++) {
        uint64_t number = (uint64_t)positions[i];
        do {
            uint64_t left = number / base, right = number % base;
            for (int64_t round = 0; round < rounds; round++) {
                uint64_t drawn = (((uint64_t)mixed((uint32_t)right, words[round]) * base) >> 32) + left;
                drawn -= drawn >= base ? base : 0;
                left = right;
                right = drawn;
            }
            number = left * base + right;
        } while (number >= size);
        out[i] = (int64_t)number;
    }
}
