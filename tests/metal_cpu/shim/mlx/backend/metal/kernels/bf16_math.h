// Stands in for MLX's header of this name, which calls the Metal compiler's own builtins:
// metal_math and metal_simdgroup already carry the bfloat16 overloads it would add.
#pragma once
