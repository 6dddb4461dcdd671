// Two-dimensional convolution of images with few channels, such as the first layer of a network has: forward with bias
// and rectifier, and the gradients of kernel and bias and of the images.
//
// Compiled for one kernel: CHANNELS of the images, KERNEL_H lines and KERNEL_W columns, and STRIDE. The 32 threads of a
// warp take 32 output channels, so that they read the same pixels and write side by side; what a thread needs of the
// kernel, at most 27 weights, stays in its registers. For the gradient of the images a thread takes a pixel of the
// results instead, and shared memory brings together what falls on a pixel of the image. Nothing is added up in an
// order that varies. Without the number of blocks in the launch bounds the compiler spills some registers.
// Axes: N images, H lines, W columns, P and Q those of the result, O outputs; layouts are NHWC and HWIO.
#ifdef EMULATED
#include "emulation.h"
#else
#define DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#endif

constexpr int TAPS = KERNEL_H * KERNEL_W * CHANNELS;
constexpr int PIXELS = 4;                               // of a line of the result that a thread has under way
constexpr int SPAN = (PIXELS - 1) * STRIDE + KERNEL_W;  // columns that they see

struct Sizes {
  int images, height, width, p, q, outputs, top, left;  // the last two: zeros above and to the left of an image
};
#define SIZES int images, int height, int width, int p, int q, int outputs, int top, int left
#define GIVEN Sizes{images, height, width, p, q, outputs, top, left}

// Call use(tap, r, s, c) for each line and channel with the columns that PIXELS results from column `first` on see;
// there are zeros outside the image. `at` is a line of the results of all images.
template <class Use>
__device__ __forceinline__ void each_line(const float* x, Sizes size, int at, int first, Use use) {
  const int image = at / size.p, line = at % size.p * STRIDE - size.top, column = first * STRIDE - size.left;
#pragma unroll
  for (int r = 0; r < KERNEL_H; ++r)
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
      const bool inside = line + r >= 0 && line + r < size.height;
      const float* pixels = x + ((size_t)image * size.height + line + r) * size.width * CHANNELS + c;
      float seen[SPAN];
#pragma unroll
      for (int k = 0; k < SPAN; ++k) {
        const bool there = inside && column + k >= 0 && column + k < size.width;
        seen[k] = there ? __ldg(pixels + (column + k) * CHANNELS) : 0.f;
      }
      use(seen, r, c);
    }
}

__device__ __forceinline__ int tap(int r, int s, int c) { return (r * KERNEL_W + s) * CHANNELS + c; }

// The gradient before the rectifier, if there is one; then y is what it returned. Both loads are under way at a time.
__device__ __forceinline__ float slope(const float* y, const float* dy, size_t i) {
  const float d = __ldg(dy + i), rectified = y ? __ldg(y + i) : 1.f;
  return rectified > 0.f ? d : 0.f;
}

__device__ __forceinline__ float4 four_slopes(const float* y, const float* dy, size_t i) {
  float4 d = __ldg(reinterpret_cast<const float4*>(dy + i));
  if (!y) return d;
  const float4 rectified = __ldg(reinterpret_cast<const float4*>(y + i));
  return make_float4(rectified.x > 0.f ? d.x : 0.f, rectified.y > 0.f ? d.y : 0.f, rectified.z > 0.f ? d.z : 0.f,
                     rectified.w > 0.f ? d.w : 0.f);
}

// A warp takes a line of the results; grid ceil(N P / warps), ceil(O / 32).
extern "C" __global__ void __launch_bounds__(256, 1)
conv2d_forward(const float* __restrict__ x, const float* __restrict__ w, const float* __restrict__ b,
               float* __restrict__ y, SIZES, int rectify) {
  const int o = blockIdx.y * 32 + threadIdx.x % 32, at = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (at >= images * p || o >= outputs) return;
  float weights[TAPS];
#pragma unroll
  for (int k = 0; k < TAPS; ++k) weights[k] = __ldg(w + (size_t)k * outputs + o);
  const float bias = __ldg(b + o);
  for (int first = 0; first < q; first += PIXELS) {
    float sums[PIXELS];
#pragma unroll
    for (int k = 0; k < PIXELS; ++k) sums[k] = bias;
    each_line(x, GIVEN, at, first, [&](const float* seen, int r, int c) {
#pragma unroll
      for (int s = 0; s < KERNEL_W; ++s)
#pragma unroll
        for (int k = 0; k < PIXELS; ++k) sums[k] = fmaf(seen[k * STRIDE + s], weights[tap(r, s, c)], sums[k]);
    });
#pragma unroll
    for (int k = 0; k < PIXELS; ++k)
      if (first + k < q) y[((size_t)at * q + first + k) * outputs + o] = rectify && sums[k] < 0.f ? 0.f : sums[k];
  }
}

// Each block adds up some results and leaves the gradients of kernel and bias in sums (blocks, TAPS + 1, O), the bias
// last; to be added up over the blocks. Grid blocks, ceil(O / 32). Shared memory: float[warps][TAPS + 1][32].
extern "C" __global__ void __launch_bounds__(256, STRIDE == 1 ? 2 : 1)
conv2d_weights(const float* __restrict__ x, const float* __restrict__ y, const float* __restrict__ dy,
               float* __restrict__ sums, SIZES) {
  DYNAMIC_SHARED(float, shared);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, o = blockIdx.y * 32 + lane;
  const int parts = (q + PIXELS - 1) / PIXELS, items = images * p * parts, step = gridDim.x * warps;
  float own[TAPS] = {}, bias = 0.f, next[PIXELS];
  auto read_next = [&](int item) {
#pragma unroll
    for (int k = 0; k < PIXELS; ++k) {
      const int at = item / parts, column = item % parts * PIXELS + k;
      next[k] = item < items && column < q ? slope(y, dy, ((size_t)at * q + column) * outputs + o) : 0.f;
    }
  };
  int item = blockIdx.x * warps + warp;
  if (o < outputs) {
    read_next(item);
    for (; item < items; item += step) {
      float dz[PIXELS];
#pragma unroll
      for (int k = 0; k < PIXELS; ++k) bias += dz[k] = next[k];
      read_next(item + step);
      each_line(x, GIVEN, item / parts, item % parts * PIXELS, [&](const float* seen, int r, int c) {
#pragma unroll
        for (int s = 0; s < KERNEL_W; ++s)
#pragma unroll
          for (int k = 0; k < PIXELS; ++k) own[tap(r, s, c)] = fmaf(seen[k * STRIDE + s], dz[k], own[tap(r, s, c)]);
      });
    }
  }
#pragma unroll
  for (int k = 0; k < TAPS; ++k) shared[(warp * (TAPS + 1) + k) * 32 + lane] = own[k];
  shared[(warp * (TAPS + 1) + TAPS) * 32 + lane] = bias;
  __syncthreads();
  for (int k = warp; k <= TAPS; k += warps) {
    float sum = 0.f;
    for (int other = 0; other < warps; ++other) sum += shared[(other * (TAPS + 1) + k) * 32 + lane];
    if (o < outputs) sums[((size_t)blockIdx.x * (TAPS + 1) + k) * outputs + o] = sum;
  }
}

// A block takes `lines` x `columns` of an image; these depend on no more results than it has threads. Each thread
// multiplies one result's gradient, 32 outputs at a time, with all weights: these products are what falls on the pixels
// around. Grid N, ceil(H / lines), ceil(W / columns). Shared memory: float[TAPS][threads], float[TAPS][32].
extern "C" __global__ void __launch_bounds__(256, STRIDE == 1 ? 2 : 1)
conv2d_images(const float* __restrict__ y, const float* __restrict__ dy, const float* __restrict__ w,
              float* __restrict__ dx, SIZES, int lines, int columns) {
  DYNAMIC_SHARED(float4, memory);
  float* const products = reinterpret_cast<float*>(memory);
  float* const weights = products + TAPS * blockDim.x;
  const int image = blockIdx.x, up = blockIdx.y * lines, before = blockIdx.z * columns;
  const int down = min(height, up + lines), after = min(width, before + columns);
  const int first_p = max(0, up + top - KERNEL_H + STRIDE) / STRIDE, last_p = min(p - 1, (down - 1 + top) / STRIDE);
  const int first_q = max(0, before + left - KERNEL_W + STRIDE) / STRIDE;
  const int last_q = min(q - 1, (after - 1 + left) / STRIDE), across = max(1, last_q - first_q + 1);
  const int own_p = first_p + (int)threadIdx.x / across, own_q = first_q + (int)threadIdx.x % across;
  const bool mine = own_p <= last_p && own_q <= last_q;
  const size_t at = (((size_t)image * p + own_p) * q + own_q) * outputs;
  const bool vectors = outputs % 4 == 0 && ((size_t)dy | (size_t)y) % 16 == 0;
  float sums[TAPS] = {};
  for (int start = 0; start < outputs; start += 32) {
    __syncthreads();
    for (int k = threadIdx.x; k < TAPS * 32; k += blockDim.x)
      weights[k] = start + k % 32 < outputs ? __ldg(w + (size_t)(k / 32) * outputs + start + k % 32) : 0.f;
    __syncthreads();
    if (!mine) continue;
    const int size = min(32, outputs - start);
    if (vectors) {
#pragma unroll 4
      for (int k = 0; k < size; k += 4) {
        const float4 dz = four_slopes(y, dy, at + start + k);
#pragma unroll
        for (int t = 0; t < TAPS; ++t) {
          const float4 v = *reinterpret_cast<const float4*>(weights + 32 * t + k);
          sums[t] = fmaf(dz.w, v.w, fmaf(dz.z, v.z, fmaf(dz.y, v.y, fmaf(dz.x, v.x, sums[t]))));
        }
      }
    } else {
      for (int k = 0; k < size; ++k) {
        const float dz = slope(y, dy, at + start + k);
#pragma unroll
        for (int t = 0; t < TAPS; ++t) sums[t] = fmaf(dz, weights[32 * t + k], sums[t]);
      }
    }
  }
#pragma unroll
  for (int t = 0; t < TAPS; ++t) products[t * blockDim.x + threadIdx.x] = sums[t];
  __syncthreads();
  const int width_here = (after - before) * CHANNELS;
  for (int k = threadIdx.x; k < (down - up) * width_here; k += blockDim.x) {
    const int line = up + k / width_here, column = before + k % width_here / CHANNELS, c = k % CHANNELS;
    float sum = 0.f;
#pragma unroll
    for (int r = 0; r < KERNEL_H; ++r)
#pragma unroll
      for (int s = 0; s < KERNEL_W; ++s) {
        const int i = line + top - r, j = column + left - s;
        if (i < 0 || j < 0 || i % STRIDE || j % STRIDE || i / STRIDE > last_p || j / STRIDE > last_q) continue;
        sum += products[tap(r, s, c) * blockDim.x + (i / STRIDE - first_p) * across + j / STRIDE - first_q];
      }
    dx[(((size_t)image * height + line) * width + column) * CHANNELS + c] = sum;
  }
}

#ifdef EMULATED
EMULATE(conv2d_forward)
EMULATE(conv2d_weights)
EMULATE(conv2d_images)
#endif
