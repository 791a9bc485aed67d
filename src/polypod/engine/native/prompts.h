/* What the simulated router and the rows of a serving node share. */

#define PROMPT_MEMORY_S 10.0
#define MOST_PROMPT_SHARE 0.9

static double causal_pairs(i64 tokens, i64 cached) {
    return (double)(tokens * cached) + (double)(tokens * (tokens + 1)) / 2;
}
