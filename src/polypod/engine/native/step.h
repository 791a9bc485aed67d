/* The step time of cost/steptime.py, in the same order of operations. */

static double curve_s(const Core *core, const Kind *kind, double tokens) {
    if (tokens <= 0) return 0.0;
    const double *knots = core->knot_tokens + kind->first_knot, *seconds = core->knot_seconds + kind->first_knot;
    i64 right = 0;
    while (right < kind->knots && knots[right] <= tokens) right++;
    if (right < 1) right = 1;
    if (right > kind->knots - 1) right = kind->knots - 1;
    i64 left = right - 1;
    double slope = (seconds[right] - seconds[left]) / (knots[right] - knots[left]);
    double value = seconds[left] + slope * (tokens - knots[left]);
    return value > 0.0 ? value : 0.0;
}

static double step_time_s(
    const Core *core, const Kind *kind, double tokens, double kv_tokens, double pairs, double sequences
) {
    return curve_s(core, kind, tokens) + kind->kv_token_s * kv_tokens + kind->pair_s * pairs
           + kind->sequence_s * sequences;
}

/* Seconds of a prompt computed alone in steps of the budget after what of it is cached, and how many they are: policy/kinds.py. */
static double prompt_alone_s(const Core *core, const Kind *kind, i64 tokens, i64 cached, i64 *steps) {
    i64 left = tokens - cached, full = left / kind->budget, rest = left % kind->budget;
    *steps = full + (rest > 0);
    double chunks_s = (double)full * curve_s(core, kind, (double)kind->budget) + curve_s(core, kind, (double)rest);
    return chunks_s + kind->pair_s * causal_pairs(left, cached);
}

/* Python's rounding of a float to a whole number: halves to even. */
static i64 rounded(double value) { return (i64)nearbyint(value); }
