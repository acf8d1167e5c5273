// A flow's move, as advance.metal and flow_step.metal compute it.

CONSTANT constexpr float LARGEST_DISPLACEMENT = 0.5f;  // per axis and step
CONSTANT constexpr float LARGEST_COORDINATE = 10.0f;   // NaN and infinity are replaced before the clamp

// NaN passes: min and max would swallow it before it is replaced.
FUNCTION float limit(float x, float bound) { return x < -bound ? -bound : x > bound ? bound : x; }

// Once at the side walls; not clamped.
FUNCTION float reflected(float x) { return x < -1.0f ? -2.0f - x : x > 1.0f ? 2.0f - x : x; }

// From one position to another, given where the flow would be without bounds: whether that is on an output plane.
// square: of the length of the move as clamped, before any reflection.
template <bool REFLECT>
FUNCTION bool travel(thread const float (&from)[3], thread const float (&unbounded)[3], thread float (&to)[3], thread float& square) {
    for (int axis = 0; axis < 3; ++axis) {
        float raw = sanitise(unbounded[axis], LARGEST_COORDINATE);
        float clamped = limit(raw, 1.0f);
        square += (clamped - from[axis]) * (clamped - from[axis]);
        to[axis] = REFLECT && axis < 2 ? limit(reflected(raw), 1.0f) : clamped;
    }
    bool reached = to[2] <= -1.0f || to[2] >= 1.0f;
    return reached;
}
