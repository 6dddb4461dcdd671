// Long short-term memories of at most 128 units, forward and back through time: all steps in one launch.
//
// A block owns one batch row of one direction for the whole sequence, so blocks never wait for each other and the sums
// have one order: results do not vary. The recurrent weights stay in registers, those past HELD in shared memory.
// A step costs one barrier: h (back: dz) has two buffers, one being read while the other is written.
//
// Constants, set by the loader:
//   HIDDEN  units, at most 128
//   PADDED  a multiple of 16 that is no less; the units past HIDDEN have zero weights and stay zero
//   UNITS   units a thread works on; SLOTS of them are side by side, four threads ("lanes") each
//   HELD    weights (each of four gates and UNITS units) that a thread keeps in registers, of PADDED / 4
//   HARD    1 for Keras 2's hard sigmoids
// Grid (N, D), block THREADS. Axes: N batch, T steps, D directions, H units; gates i, f, g, o along the last axis.
#ifdef EMULATED
#include "emulation.h"
__device__ inline float power_of_two(float x) { return std::exp2(x); }
__device__ inline float reciprocal(float x) { return 1.f / x; }
#else
#define DYNAMIC_SHARED(type, name) extern __shared__ type name[]
__device__ __forceinline__ float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#endif

constexpr int THREADS = 4 * PADDED / UNITS;
constexpr int SLOTS = PADDED / UNITS;
constexpr int PIECES = PADDED / 16;        // of the inputs of a product that a thread has a share in, four each
constexpr int HOUSED = PADDED / 4 - HELD;  // weights of a thread in shared memory
constexpr unsigned ALL = 0xffffffffu;

__device__ __forceinline__ float sigmoid(float x) { return reciprocal(1.f + power_of_two(-1.4426950408889634f * x)); }

__device__ __forceinline__ float tanh_of(float x) { return fmaf(2.f, sigmoid(2.f * x), -1.f); }

// The activation of gate q. A tanh is a sigmoid of twice the argument, so the lanes of a unit do not diverge.
__device__ __forceinline__ float activation(float z, int q) {
  const bool is_g = q == 2;
  const float soft = fmaf(is_g ? 2.f : 1.f, sigmoid(is_g ? 2.f * z : z), is_g ? -1.f : 0.f);
  return HARD && !is_g ? fminf(fmaxf(fmaf(0.2f, z, 0.5f), 0.f), 1.f) : soft;
}

// The slope of gate q where its activation is a.
__device__ __forceinline__ float slope(float a, int q) {
  if (q == 2) return 1.f - a * a;
  return HARD ? (a > 0.f && a < 1.f ? 0.2f : 0.f) : a - a * a;
}

// The weights from unit k to the four gates of unit u; zero for padding.
__device__ __forceinline__ float4 weights_of(const float* __restrict__ w_h, int k, int u) {
  if (k >= HIDDEN || u >= HIDDEN) return make_float4(0.f, 0.f, 0.f, 0.f);
  const float* w = w_h + (size_t)k * 4 * HIDDEN + u;
  return make_float4(__ldg(w), __ldg(w + HIDDEN), __ldg(w + 2 * HIDDEN), __ldg(w + 3 * HIDDEN));
}

__device__ __forceinline__ float element(float4 v, int e) { return e == 0 ? v.x : e == 1 ? v.y : e == 2 ? v.z : v.w; }

// Add up each component over the four lanes of a unit; lane q gets the sum of component q.
__device__ __forceinline__ float sum_of_lanes(float4 v, int q) {
  const bool upper = q & 2, odd = q & 1;
  float kept = upper ? v.z : v.x, also_kept = upper ? v.w : v.y;
  kept += __shfl_xor_sync(ALL, upper ? v.x : v.z, 2);
  also_kept += __shfl_xor_sync(ALL, upper ? v.y : v.w, 2);
  return (odd ? also_kept : kept) + __shfl_xor_sync(ALL, odd ? kept : also_kept, 1);
}

// zx (N, T, D, 4H) are the input products with the bias, w_h (H, 4H) the weights of each direction, the second null where
// there is none. Bit d of `reversed` says that direction d walks from the last step to the first. Of the results each may
// be null: h (N, T, D, H); last (N, D, H), h after the last step; for the way back gates (N, T, D, 4H), activated, cells
// (N, T, D, H), and before (N, T, D, H), h before each step.
// Shared memory: float4[HOUSED * UNITS * THREADS], float[2 * PADDED].
extern "C" __global__ void __launch_bounds__(THREADS, 1)
lstm_forward(const float* __restrict__ zx, const float* __restrict__ w_h, const float* __restrict__ w_h_1,
             float* __restrict__ h, float* __restrict__ last, float* __restrict__ gates, float* __restrict__ cells,
             float* __restrict__ before, int steps, int reversed) {
  DYNAMIC_SHARED(float4, housed);
  float* states = reinterpret_cast<float*>(housed + HOUSED * UNITS * THREADS);
  const int thread = threadIdx.x, q = thread & 3, slot = thread >> 2, directions = gridDim.y;
  const bool backwards = reversed >> blockIdx.y & 1;
  const int stride = backwards ? -directions : directions;
  // a place counts directions and steps of a row: times H or 4H, it is where the values of the step are
  size_t place = ((size_t)blockIdx.x * steps + (backwards ? steps - 1 : 0)) * directions + blockIdx.y;
  if (blockIdx.y) w_h = w_h_1;

  // lane q multiplies h[16 j + 4 q + e] for every piece j
  float4 held[HELD][UNITS];
#pragma unroll
  for (int j = 0; j < PIECES; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e)
#pragma unroll
      for (int i = 0; i < UNITS; ++i) {
        const float4 w = weights_of(w_h, 16 * j + 4 * q + e, slot + i * SLOTS);
        const int k = 4 * j + e;
        if (k < HELD) held[k < HELD ? k : 0][i] = w;
        else housed[((k - HELD) * UNITS + i) * THREADS + thread] = w;
      }

  float c[UNITS], ahead[UNITS];  // the cell states, and the input product of the next step
#pragma unroll
  for (int i = 0; i < UNITS; ++i) {
    const int u = slot + i * SLOTS;
    c[i] = 0.f;
    ahead[i] = u < HIDDEN ? __ldg(zx + place * 4 * HIDDEN + q * HIDDEN + u) : 0.f;
    if (q == 0) states[u] = 0.f;
    if (before && q == 0 && u < HIDDEN) before[place * HIDDEN + u] = 0.f;
  }
  __syncthreads();

  for (int s = 0; s < steps; ++s, place += stride) {
    const float4* now = reinterpret_cast<const float4*>(states + (s & 1) * PADDED);
    float* next = states + (~s & 1) * PADDED;
    float4 z[UNITS];
#pragma unroll
    for (int i = 0; i < UNITS; ++i) z[i] = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
    for (int j = 0; j < PIECES; ++j) {
      const float4 state = now[4 * j + q];
#pragma unroll
      for (int e = 0; e < 4; ++e)
#pragma unroll
        for (int i = 0; i < UNITS; ++i) {
          const int k = 4 * j + e;
          const float4 w = k < HELD ? held[k < HELD ? k : 0][i] : housed[((k - HELD) * UNITS + i) * THREADS + thread];
          const float value = element(state, e);
          z[i].x = fmaf(value, w.x, z[i].x);
          z[i].y = fmaf(value, w.y, z[i].y);
          z[i].z = fmaf(value, w.z, z[i].z);
          z[i].w = fmaf(value, w.w, z[i].w);
        }
    }
#pragma unroll
    for (int i = 0; i < UNITS; ++i) {
      const int u = slot + i * SLOTS;
      const float input = ahead[i];
      if (s + 1 < steps && u < HIDDEN) ahead[i] = __ldg(zx + (place + stride) * 4 * HIDDEN + q * HIDDEN + u);
      const float a = activation(sum_of_lanes(z[i], q) + input, q);
      const int lane = thread & 28;
      const float of_i = __shfl_sync(ALL, a, lane), of_f = __shfl_sync(ALL, a, lane + 1);
      const float of_g = __shfl_sync(ALL, a, lane + 2), of_o = __shfl_sync(ALL, a, lane + 3);
      c[i] = fmaf(of_f, c[i], of_i * of_g);
      const float state = of_o * tanh_of(c[i]);
      if (q == 0) next[u] = u < HIDDEN ? state : 0.f;
      if (u < HIDDEN) {
        if (before && q == 0 && s + 1 < steps) before[(place + stride) * HIDDEN + u] = state;
        if (h && q == 1) h[place * HIDDEN + u] = state;
        if (cells && q == 2) cells[place * HIDDEN + u] = c[i];
        if (last && q == 3 && s + 1 == steps) last[((size_t)blockIdx.x * directions + blockIdx.y) * HIDDEN + u] = state;
        if (gates) gates[place * 4 * HIDDEN + q * HIDDEN + u] = a;
      }
    }
    __syncthreads();
  }
}

// What the way back needs of one step of one unit.
struct Step {
  float i, f, g, o, c, c_before, dh;
};

// From the gradient dh of all steps, or of the last alone where it has no axis T, walk back through the steps of
// lstm_forward and leave the gradient of the input products in dz (N, T, D, 4H). All other gradients are products of it.
// Shared memory: float4[HOUSED * UNITS * THREADS], float4[2 * PADDED].
extern "C" __global__ void __launch_bounds__(THREADS, 1)
lstm_backward(const float* __restrict__ dh, const float* __restrict__ gates, const float* __restrict__ cells,
              const float* __restrict__ w_h, const float* __restrict__ w_h_1, float* __restrict__ dz, int steps,
              int reversed, int sequences) {
  DYNAMIC_SHARED(float4, housed);
  float4* gradients = housed + HOUSED * UNITS * THREADS;
  const int thread = threadIdx.x, q = thread & 3, slot = thread >> 2, lane = thread & 15, directions = gridDim.y;
  const bool backwards = reversed >> blockIdx.y & 1;
  const int stride = backwards ? directions : -directions;
  size_t place = ((size_t)blockIdx.x * steps + (backwards ? 0 : steps - 1)) * directions + blockIdx.y;
  if (blockIdx.y) w_h = w_h_1;

  // sixteen lanes share the gradients of four units, `first` and its neighbours; lane l multiplies dz of unit 16 m + l
  const int first = slot & ~3;
  float4 held[HELD][UNITS];
#pragma unroll
  for (int m = 0; m < PIECES; ++m)
#pragma unroll
    for (int e = 0; e < 4; ++e)
#pragma unroll
      for (int i = 0; i < UNITS; ++i) {
        const float4 w = weights_of(w_h, first + e + i * SLOTS, 16 * m + lane);
        const int k = 4 * m + e;
        if (k < HELD) held[k < HELD ? k : 0][i] = w;
        else housed[((k - HELD) * UNITS + i) * THREADS + thread] = w;
      }

  // The step that comes next is read one step ahead, so that only dh -> dc -> dz waits for anything.
  Step next[UNITS];
  float carried_h[UNITS], carried_c[UNITS];
#pragma unroll
  for (int i = 0; i < UNITS; ++i) {
    const int u = slot + i * SLOTS;
    next[i] = {};
    carried_h[i] = carried_c[i] = 0.f;
    if (u < HIDDEN) {
      next[i].c_before = __ldg(cells + place * HIDDEN + u);
      if (!sequences) carried_h[i] = __ldg(dh + ((size_t)blockIdx.x * directions + blockIdx.y) * HIDDEN + u);
    }
  }
  auto read = [&](int i, size_t at, bool is_first_step) {
    const int u = slot + i * SLOTS;
    if (u >= HIDDEN) return;
    const float* a = gates + at * 4 * HIDDEN + u;
    next[i] = {__ldg(a), __ldg(a + HIDDEN), __ldg(a + 2 * HIDDEN), __ldg(a + 3 * HIDDEN), next[i].c_before,
               is_first_step ? 0.f : __ldg(cells + (at + stride) * HIDDEN + u),
               sequences ? __ldg(dh + at * HIDDEN + u) : 0.f};
  };
#pragma unroll
  for (int i = 0; i < UNITS; ++i) read(i, place, steps == 1);

  for (int s = 0; s < steps; ++s, place += stride) {
    float4* now = gradients + (s & 1) * PADDED;
#pragma unroll
    for (int i = 0; i < UNITS; ++i) {
      const int u = slot + i * SLOTS;
      const Step& step = next[i];
      const float tanh_c = tanh_of(step.c);
      const float own = q == 0 ? step.i : q == 1 ? step.f : q == 2 ? step.g : step.o;
      const float other = q == 0 ? step.g : q == 1 ? step.c_before : q == 2 ? step.i : tanh_c;
      const float of_h = carried_h[i] + step.dh;
      const float of_c = fmaf(of_h, step.o * (1.f - tanh_c * tanh_c), carried_c[i]);
      const float of_z = (q == 3 ? of_h : of_c) * other * slope(own, q);
      carried_c[i] = of_c * step.f;
      reinterpret_cast<float*>(now)[4 * u + q] = of_z;
      if (u < HIDDEN) dz[place * 4 * HIDDEN + q * HIDDEN + u] = of_z;
      if (s + 1 < steps) read(i, place + stride, s + 2 == steps);
    }
    __syncthreads();
    float sums[UNITS][4];
#pragma unroll
    for (int i = 0; i < UNITS; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[i][e] = 0.f;
#pragma unroll
    for (int m = 0; m < PIECES; ++m) {
      const float4 v = now[16 * m + lane];
#pragma unroll
      for (int e = 0; e < 4; ++e)
#pragma unroll
        for (int i = 0; i < UNITS; ++i) {
          const int k = 4 * m + e;
          const float4 w = k < HELD ? held[k < HELD ? k : 0][i] : housed[((k - HELD) * UNITS + i) * THREADS + thread];
          sums[i][e] = fmaf(v.w, w.w, fmaf(v.z, w.z, fmaf(v.y, w.y, fmaf(v.x, w.x, sums[i][e]))));
        }
    }
#pragma unroll
    for (int i = 0; i < UNITS; ++i) {  // lanes 8 and 4 apart share out the four sums, those 2 and 1 apart add theirs up
      const bool upper = lane & 8, odd = lane & 4;
      float kept = upper ? sums[i][2] : sums[i][0], also_kept = upper ? sums[i][3] : sums[i][1];
      kept += __shfl_xor_sync(ALL, upper ? sums[i][0] : sums[i][2], 8);
      also_kept += __shfl_xor_sync(ALL, upper ? sums[i][1] : sums[i][3], 8);
      float sum = (odd ? also_kept : kept) + __shfl_xor_sync(ALL, odd ? kept : also_kept, 4);
      sum += __shfl_xor_sync(ALL, sum, 2);
      carried_h[i] = sum + __shfl_xor_sync(ALL, sum, 1);
    }
  }
}

#ifdef EMULATED
EMULATE(lstm_forward)
EMULATE(lstm_backward)
#endif
