// Stands in for MLX's header of this name: kernels do not log.
#pragma once
