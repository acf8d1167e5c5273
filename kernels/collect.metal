// collect: what the flows leave on a surface, the softmax-weighted mean of their energies in each cell.
// Specification: collect_reference in energy_flow_mlx/ops/collect.py.
//
//   energy [N, 1], position [N, 3] of any float type; age, sample [N] int; collected [N] bool
//   ranges:   sample -> range [B, 2] atomic int, from 0: N - first flow of the sample, last flow + 1
//   walk:     range -> surface [B, S] float, cells [B, S, KEPT] float; S = W H
//   add:      -> sums [B, S, KEPT + 1] atomic float, from 0: sum of m, sum of m energy and, if BILINEAR, sum of shares
//   divide:   sums -> surface, cells
//   backward: cotangent [B, S] float, surface, cells -> d_energy [N, 1] and d_position [N, 3] of the types of energy and position
//
// cells holds what the backward kernel needs: the sum of m = exp(weight) share of each cell and, if BILINEAR, the sum of shares and the
// mean before it is multiplied by the coverage. KEPT is 3 if BILINEAR, else 1 (the mean is the surface then).
//
// `walk` is deterministic: a threadgroup has GROUP EACH cells of one sample, EACH neighbours a thread, and walks the flows of its sample
// in order, GROUP at a time. Those that touch its cells are put into a list, in their order, and each thread adds up the ones in its own
// cells. Every cell thus sums its flows in the order of their slots. Grid: B * ceil(S / (GROUP EACH)) threadgroups of GROUP threads.
// `add` is one atomic addition a flow and sum: less work, but sums in any order. Grid of the rest: a thread a flow (ranges, add, backward)
// or a cell (divide). All arithmetic is float. Templates: W, H, BILINEAR; walk: GROUP, EACH; backward: E and P, types of energy and position.

// Where a flow stands: its cell, or the corner of four cells with the shares of the right and the lower ones.
struct Place {
    int cell;
    float right, low;
};

FUNCTION int nearest_index(float x, int points) {
    float scaled = metal::rint((x + 1.0f) / 2.0f * float(points - 1));
    if (is_nan(scaled)) return 0;
    return int(metal::min(metal::max(scaled, 0.0f), float(points - 1)));
}

// The interval between two points that x lies in, as the lower of its ends.
FUNCTION float interval(float x, int points) {
    if (is_nan(x)) return 0.0f;
    return metal::min(metal::max(metal::floor(x), 0.0f), float(points - 2));
}

FUNCTION Place place_of(float x, float y, int width, int height, bool bilinear) {
    Place place;
    if (bilinear) {
        float right = (x + 1.0f) / 2.0f * float(width - 1), low = (y + 1.0f) / 2.0f * float(height - 1);
        float left = interval(right, width), top = interval(low, height);
        place.cell = int(top) * width + int(left);
        place.right = right - left;
        place.low = low - top;
    } else {
        place.cell = nearest_index(y, height) * width + nearest_index(x, width);
        place.right = place.low = 0.0f;
    }
    return place;
}

// Corner k of four: 0 and 1 above, 2 and 3 below, 1 and 3 on the right.
FUNCTION float share_of(thread const Place& place, int k) {
    return (k % 2 == 1 ? place.right : 1.0f - place.right) * (k / 2 == 1 ? place.low : 1.0f - place.low);
}

FUNCTION float weight_of(float energy, float z, float age) {
    return metal::abs(energy) / (1.0f + (1.0f - metal::abs(z))) * (1.0f + 0.1f * age);
}

//// ranges
    uint i = thread_position_in_grid.x;
    uint flows = uint(sample_shape[0]);
    if (i >= flows) return;
    int own = sample[i];
    if (i == 0 || sample[i - 1] != own) max_to(range, uint(2 * own), int(flows - i));
    if (i + 1 == flows || sample[i + 1] != own) max_to(range, uint(2 * own + 1), int(i + 1));

//// walk
    constexpr int CELLS = W * H;
    constexpr int BLOCK = GROUP * EACH, REACH = BILINEAR ? W + 1 : 0;  // from the first cell that a flow touches to its last
    constexpr uint BLOCKS = (CELLS + BLOCK - 1) / BLOCK;
    threadgroup uint counts[GROUP / 32];
    threadgroup int list_cell[GROUP];
    threadgroup float list_mass[GROUP], list_energy[GROUP], list_right[GROUP], list_low[GROUP];
    uint me = thread_index_in_threadgroup;
    int row = int(threadgroup_position_in_grid.x / BLOCKS);
    int base = int(threadgroup_position_in_grid.x % BLOCKS) * BLOCK;
    int beyond = metal::min(base + BLOCK, CELLS);
    int own = base + int(me) * EACH;
    float mass_sum[EACH] = {}, energy_sum[EACH] = {}, share_sum[EACH] = {};
    uint end = uint(range[2 * row + 1]);
    for (uint start = uint(sample_shape[0]) - uint(range[2 * row]); start < end; start += GROUP) {
        uint i = start + me;
        bool touches = i < end && collected[i] && sample[i] == row;
        Place place;
        if (touches) {
            place = place_of(float(position[3 * i]), float(position[3 * i + 1]), W, H, BILINEAR);
            touches = place.cell < beyond && place.cell + REACH >= base;
        }
        uint inclusive = simd_prefix_inclusive_sum(touches ? 1u : 0u);
        if (thread_index_in_simdgroup == 31) counts[simdgroup_index_in_threadgroup] = inclusive;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        uint slot = inclusive - 1, listed = 0;
        for (uint other = 0; other < GROUP / 32; ++other) {
            if (other < simdgroup_index_in_threadgroup) slot += counts[other];
            listed += counts[other];
        }
        if (touches) {
            float value = float(energy[i]);
            list_cell[slot] = place.cell;
            list_mass[slot] = metal::exp(weight_of(value, float(position[3 * i + 2]), float(age[i])));
            list_energy[slot] = value;
            if (BILINEAR) {
                list_right[slot] = place.right;
                list_low[slot] = place.low;
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint entry = 0; entry < listed; ++entry) {
            int first = list_cell[entry];
            if (EACH > 1 && (first >= own + EACH || first + REACH < own)) continue;
            for (int k = 0; k < EACH; ++k) {
                int offset = own + k - first;
                if (offset != 0 && !(BILINEAR && (offset == 1 || offset == W || offset == W + 1))) continue;
                float mass = list_mass[entry];
                if (BILINEAR) {
                    place.right = list_right[entry];
                    place.low = list_low[entry];
                    float share = share_of(place, offset == 0 ? 0 : offset == 1 ? 1 : offset == W ? 2 : 3);
                    mass *= share;
                    share_sum[k] += share;
                }
                mass_sum[k] += mass;
                energy_sum[k] += mass * list_energy[entry];
            }
        }
    }
    for (int k = 0; k < EACH; ++k) {
        if (own + k >= CELLS) continue;
        uint cell = uint(row * CELLS + own + k);
        float mean = energy_sum[k] / (mass_sum[k] > 0.0f ? mass_sum[k] : 1.0f);
        surface[cell] = BILINEAR ? metal::min(share_sum[k], 1.0f) * mean : mean;
        cells[(BILINEAR ? 3 : 1) * cell] = mass_sum[k];
        if (BILINEAR) {
            cells[3 * cell + 1] = share_sum[k];
            cells[3 * cell + 2] = mean;
        }
    }

//// add
    uint i = thread_position_in_grid.x;
    if (i >= uint(sample_shape[0]) || !collected[i]) return;
    Place place = place_of(float(position[3 * i]), float(position[3 * i + 1]), W, H, BILINEAR);
    float value = float(energy[i]);
    float mass = metal::exp(weight_of(value, float(position[3 * i + 2]), float(age[i])));
    uint first = uint(sample[i] * (W * H) + place.cell);
    for (int k = 0; k < (BILINEAR ? 4 : 1); ++k) {
        float share = BILINEAR ? share_of(place, k) : 1.0f;
        uint at = (BILINEAR ? 3 : 2) * (first + uint(k % 2 + k / 2 * W));
        add_to(sums, at, mass * share);
        add_to(sums, at + 1, mass * share * value);
        if (BILINEAR) add_to(sums, at + 2, share);
    }

//// divide
    constexpr uint SUMS = BILINEAR ? 3 : 2;
    uint cell = thread_position_in_grid.x;
    if (cell >= uint(sums_shape[0])) return;
    float mass_sum = sums[SUMS * cell];
    float mean = sums[SUMS * cell + 1] / (mass_sum > 0.0f ? mass_sum : 1.0f);
    float share_sum = BILINEAR ? sums[SUMS * cell + 2] : 1.0f;
    surface[cell] = metal::min(share_sum, 1.0f) * mean;
    cells[(BILINEAR ? 3 : 1) * cell] = mass_sum;
    if (BILINEAR) {
        cells[3 * cell + 1] = share_sum;
        cells[3 * cell + 2] = mean;
    }

//// backward
    uint i = thread_position_in_grid.x;
    if (i >= uint(sample_shape[0])) return;
    float d_value = 0.0f, d_x = 0.0f, d_y = 0.0f, d_z = 0.0f;
    if (collected[i]) {
        float value = float(energy[i]), z = float(position[3 * i + 2]), years = float(age[i]);
        Place place = place_of(float(position[3 * i]), float(position[3 * i + 1]), W, H, BILINEAR);
        float weight = weight_of(value, z, years);
        float mass = metal::exp(weight), d_mass = 0.0f;
        uint first = uint(sample[i] * (W * H) + place.cell);
        for (int k = 0; k < (BILINEAR ? 4 : 1); ++k) {
            uint cell = first + uint(k % 2 + k / 2 * W);
            float mass_sum = cells[(BILINEAR ? 3 : 1) * cell];
            float share_sum = BILINEAR ? cells[3 * cell + 1] : 1.0f;
            float mean = BILINEAR ? cells[3 * cell + 2] : surface[cell];
            float share = BILINEAR ? share_of(place, k) : 1.0f;
            float d_mean = cotangent[cell] * metal::min(share_sum, 1.0f);
            float per_mass = d_mean / (mass_sum > 0.0f ? mass_sum : 1.0f);
            float difference = mass_sum > 0.0f ? value - mean : value;
            d_value += per_mass * mass * share;
            d_mass += per_mass * difference * share;
            if (BILINEAR) {
                float d_share = per_mass * difference * mass + (share_sum < 1.0f ? cotangent[cell] * mean : 0.0f);
                d_x += d_share * (k % 2 == 1 ? 1.0f : -1.0f) * (k / 2 == 1 ? place.low : 1.0f - place.low);
                d_y += d_share * (k / 2 == 1 ? 1.0f : -1.0f) * (k % 2 == 1 ? place.right : 1.0f - place.right);
            }
        }
        float d_weight = d_mass * mass;
        float reach = 1.0f + (1.0f - metal::abs(z));
        float sign = value > 0.0f ? 1.0f : value < 0.0f ? -1.0f : 0.0f;
        d_value += d_weight * sign * (1.0f + 0.1f * years) / reach;
        d_x *= 0.5f * float(W - 1);
        d_y *= 0.5f * float(H - 1);
        d_z = d_weight * weight / reach * (z > 0.0f ? 1.0f : z < 0.0f ? -1.0f : 0.0f);
    }
    d_energy[i] = E(d_value);
    d_position[3 * i] = P(d_x);
    d_position[3 * i + 1] = P(d_y);
    d_position[3 * i + 2] = P(d_z);
