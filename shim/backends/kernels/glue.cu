// What stands between the layers with weights: pooling, rectifier, dropout, normalisation and the losses, each forward
// and each back in one launch. Results do not vary.
#ifdef EMULATED
#include "emulation.h"
#else
#define DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#endif
typedef unsigned long long Word;

template <int SIZE>
struct __attribute__((aligned(4 * SIZE))) Vector {
  float v[SIZE];
};
template <int SIZE>
struct __attribute__((aligned(SIZE))) Bytes {
  unsigned char v[SIZE];
};
template <class T>
__device__ __forceinline__ T at(const void* p) {
  return *static_cast<const T*>(p);
}
template <class T>
__device__ __forceinline__ void put(void* p, T value) {
  *static_cast<T*>(p) = value;
}

// ------------------------------------------------------------------------------------------------------- max_pool2d
// x (N, H, W, C), y and dy (N, P, Q, C), dx like x. A thread takes SIZE channels of a window; `channels` is C / SIZE.
// places (N, P, Q, C), which may be null, keeps where in its window each maximum was, the first of equal ones. A bias
// (C), which may be null, is added to the maxima, and then they may be rectified: a convolution leaves that to its pool.

template <int SIZE, int POOL>
__device__ __forceinline__ void max_pool(const float* __restrict__ x, float* __restrict__ y,
                                         unsigned char* __restrict__ places, int total, int height, int width, int p,
                                         int q, int channels, int pool, const float* __restrict__ bias, int rectify) {
  if (POOL) pool = POOL;
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= total) return;
  const int c = i % channels, column = i / channels % q, line = i / channels / q;
  const size_t corner = ((size_t)(line / p) * height + line % p * pool) * width + column * pool;
  Vector<SIZE> best = at<Vector<SIZE>>(x + (corner * channels + c) * SIZE);
  Bytes<SIZE> place = {};
#pragma unroll
  for (int k = 1; k < pool * pool; ++k) {
    const Vector<SIZE> other = at<Vector<SIZE>>(x + ((corner + k / pool * width + k % pool) * channels + c) * SIZE);
#pragma unroll
    for (int e = 0; e < SIZE; ++e)
      if (other.v[e] > best.v[e] || other.v[e] != other.v[e]) best.v[e] = other.v[e], place.v[e] = k;
  }
#pragma unroll
  for (int e = 0; e < SIZE; ++e) {
    if (bias) best.v[e] += __ldg(bias + c * SIZE + e);
    if (rectify && best.v[e] < 0.f) best.v[e] = 0.f;
  }
  put(y + (size_t)i * SIZE, best);
  if (places) put(places + (size_t)i * SIZE, place);
}

// The windows go on here over what is left at the edges, where the gradient is zero; `total` counts them all.
template <int SIZE, int POOL>
__device__ __forceinline__ void max_pool_back(const unsigned char* __restrict__ places, const float* __restrict__ dy,
                                              float* __restrict__ dx, int total, int height, int width, int p, int q,
                                              int channels, int pool) {
  if (POOL) pool = POOL;
  const int i = blockIdx.x * blockDim.x + threadIdx.x, lines = (height + pool - 1) / pool;
  const int columns = (width + pool - 1) / pool;
  if (i >= total) return;
  const int c = i % channels, column = i / channels % columns, line = i / channels / columns;
  const int image = line / lines, row = line % lines;
  Vector<SIZE> g = {};
  Bytes<SIZE> place = {};
  if (row < p && column < q) {
    const size_t from = ((((size_t)image * p + row) * q + column) * channels + c) * SIZE;
    g = at<Vector<SIZE>>(dy + from);
    place = at<Bytes<SIZE>>(places + from);
  }
#pragma unroll
  for (int k = 0; k < pool * pool; ++k) {
    const int h = row * pool + k / pool, w = column * pool + k % pool;
    if (h >= height || w >= width) continue;
    Vector<SIZE> value;
#pragma unroll
    for (int e = 0; e < SIZE; ++e) value.v[e] = place.v[e] == k ? g.v[e] : 0.f;
    put(dx + ((((size_t)image * height + h) * width + w) * channels + c) * SIZE, value);
  }
}

#define POOLS(SIZE)                                                                                                   \
  extern "C" __global__ void __launch_bounds__(256) max_pool_##SIZE(                                                  \
      const float* x, float* y, unsigned char* places, int total, int height, int width, int p, int q, int channels,  \
      int pool, const float* bias, int rectify) {                                                                     \
    if (pool == 2) max_pool<SIZE, 2>(x, y, places, total, height, width, p, q, channels, pool, bias, rectify);        \
    else max_pool<SIZE, 0>(x, y, places, total, height, width, p, q, channels, pool, bias, rectify);                  \
  }                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(256) max_pool_back_##SIZE(                                             \
      const unsigned char* places, const float* dy, float* dx, int total, int height, int width, int p, int q,        \
      int channels, int pool) {                                                                                       \
    if (pool == 2) max_pool_back<SIZE, 2>(places, dy, dx, total, height, width, p, q, channels, pool);                \
    else max_pool_back<SIZE, 0>(places, dy, dx, total, height, width, p, q, channels, pool);                          \
  }
POOLS(1)
POOLS(4)

// ------------------------------------------------------------------------------------------------- relu and dropout

// Let y = value(x, k) for the elements k < 4 of four that this thread takes, by a vector if arrays begin where one may.
template <class Value>
__device__ __forceinline__ void each_of_four(const float* x, float* y, int size, Value value) {
  const int i = 4 * (blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= size) return;
  if (((size_t)x | (size_t)y) % 16 == 0 && i + 4 <= size) {
    const float4 four = at<float4>(x + i);
    put(y + i, make_float4(value(four.x, 0), value(four.y, 1), value(four.z, 2), value(four.w, 3)));
  } else {
    for (int k = 0; k < min(4, size - i); ++k) y[i + k] = value(x[i + k], k);
  }
}

extern "C" __global__ void __launch_bounds__(256) relu(const float* x, float* y, int size) {
  each_of_four(x, y, size, [](float x, int) { return x < 0.f ? 0.f : x; });
}

extern "C" __global__ void __launch_bounds__(256) relu_back(const float* y, const float* dy, float* dx, int size) {
  const int i = 4 * (blockIdx.x * blockDim.x + threadIdx.x);
  each_of_four(dy, dx, size, [=](float g, int k) { return __ldg(y + i + k) > 0.f ? g : 0.f; });
}

// A word of SplitMix64 for every four elements, the first one `offset` words after the state; 16 bits decide for each.
extern "C" __global__ void __launch_bounds__(256)
dropout(const float* x, float* y, const Word* state, Word offset, int size, unsigned threshold, float factor) {
  const Word number = offset + blockIdx.x * blockDim.x + threadIdx.x + 1;
  Word z = __ldg(state) + number * 0x9E3779B97F4A7C15;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
  z = (z ^ z >> 27) * 0x94D049BB133111EB;
  z ^= z >> 31;
  each_of_four(x, y, size, [=](float x, int k) { return x * ((z >> 16 * k & 0xFFFF) >= threshold ? factor : 0.f); });
}

// ------------------------------------------------------------------------------------------------------------- sums

__device__ __forceinline__ float sum_of_warp(float x) {
#pragma unroll
  for (int mask = 16; mask; mask /= 2) x += __shfl_xor_sync(~0u, x, mask);
  return x;
}

// Leave what the first `lanes` threads of each warp hold in shared (warps, lanes), for all threads to read.
__device__ __forceinline__ void publish(float x, float* shared, int lanes) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (lane < lanes) shared[warp * lanes + lane] = x;
  __syncthreads();
}

// Leave in `loss` the mean of what the warps of all blocks hold. The last block to come adds up what the others left in
// partial (blocks); `ticket` is 0 before and after.
__device__ __forceinline__ void mean_of_blocks(float x, float* shared, float* partial, int* ticket, float* loss,
                                               int samples) {
  const int lane = threadIdx.x, warps = blockDim.x / 32;
  publish(x, shared, 1);
  if (lane >= 32) return;
  float sum = sum_of_warp(lane < warps ? shared[lane] : 0.f);
  int last = 0;
  if (lane == 0) {
    partial[blockIdx.x] = sum;
    __threadfence();
    last = atomicAdd(ticket, 1) == (int)gridDim.x - 1;
  }
  if (!__shfl_sync(~0u, last, 0)) return;
  __threadfence();
  sum = 0.f;
  for (int k = lane; k < (int)gridDim.x; k += 32) sum += __ldcg(partial + k);
  sum = sum_of_warp(sum);
  if (lane == 0) {
    *loss = sum / samples;
    *ticket = 0;
  }
}

// ----------------------------------------------------------------------------------------------------------- losses
// A warp takes a sample with its logits (N, K); shared memory: float[warps]. normals (N, 2) keeps the largest logit of
// each sample and the sum of the powers. dy is a scalar.

extern "C" __global__ void __launch_bounds__(256)
softmax_loss(const float* __restrict__ logits, const int* __restrict__ labels, float* __restrict__ normals,
             float* partial, int* ticket, float* loss, int samples, int classes) {
  DYNAMIC_SHARED(float, shared);
  const int lane = threadIdx.x % 32, sample = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  const float* row = logits + (size_t)min(sample, samples - 1) * classes;
  float top = __ldg(row), sum = 0.f;
  for (int k = lane; k < classes; k += 32) top = fmaxf(top, __ldg(row + k));
#pragma unroll
  for (int mask = 16; mask; mask /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, mask));
  for (int k = lane; k < classes; k += 32) sum += expf(__ldg(row + k) - top);
  sum = sum_of_warp(sum);
  float own = 0.f;
  if (sample < samples) {
    own = logf(sum) - (__ldg(row + __ldg(labels + sample)) - top);
    if (lane < 2) normals[2 * sample + lane] = lane ? sum : top;
  }
  mean_of_blocks(own, shared, partial, ticket, loss, samples);
}

extern "C" __global__ void __launch_bounds__(256)
softmax_loss_back(const float* __restrict__ logits, const int* __restrict__ labels, const float* __restrict__ normals,
                  const float* __restrict__ dy, float* __restrict__ dx, int samples, int classes) {
  const int sample = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (sample >= samples) return;
  const float top = __ldg(normals + 2 * sample), sum = __ldg(normals + 2 * sample + 1), factor = __ldg(dy) / samples;
  const int label = __ldg(labels + sample);
  for (int k = threadIdx.x % 32; k < classes; k += 32) {
    const size_t i = (size_t)sample * classes + k;
    dx[i] = (expf(__ldg(logits + i) - top) / sum - (k == label ? 1.f : 0.f)) * factor;
  }
}

// A thread takes a sample with its logit (N).
extern "C" __global__ void __launch_bounds__(256)
sigmoid_loss(const float* __restrict__ logits, const int* __restrict__ labels, float* partial, int* ticket, float* loss,
             int samples) {
  DYNAMIC_SHARED(float, shared);
  const int sample = blockIdx.x * blockDim.x + threadIdx.x;
  float own = 0.f;
  if (sample < samples) {
    const float x = __ldg(logits + sample);
    own = (x < 0.f ? 0.f : x) - x * __ldg(labels + sample) + log1pf(expf(-fabsf(x)));
  }
  mean_of_blocks(sum_of_warp(own), shared, partial, ticket, loss, samples);
}

extern "C" __global__ void __launch_bounds__(256)
sigmoid_loss_back(const float* __restrict__ logits, const int* __restrict__ labels, const float* __restrict__ dy,
                  float* __restrict__ dx, int samples) {
  const int sample = blockIdx.x * blockDim.x + threadIdx.x;
  if (sample >= samples) return;
  const float sigmoid = 0.5f * tanhf(0.5f * __ldg(logits + sample)) + 0.5f;
  dx[sample] = (sigmoid - __ldg(labels + sample)) * (__ldg(dy) / samples);
}

// ------------------------------------------------------------------------------------------------------- batch_norm
// x (N, C). A block takes COLUMNS columns, whose rows its threads share; shared memory: float[2][warps][COLUMNS].

constexpr int COLUMNS = 8;  // as much of a row as one access to memory
constexpr float EPSILON = 1e-3f;

// Return the sum of x over the threads of the same column.
__device__ __forceinline__ float sum_of_column(float x, float* shared) {
  for (int mask = COLUMNS; mask < 32; mask *= 2) x += __shfl_xor_sync(~0u, x, mask);
  publish(x, shared, COLUMNS);
  float sum = 0.f;
  const int warps = blockDim.x / 32;
  for (int warp = 0; warp < warps; ++warp) sum += shared[warp * COLUMNS + threadIdx.x % COLUMNS];
  return sum;
}

// In training mean and variance (C) are written, otherwise read.
extern "C" __global__ void __launch_bounds__(1024)
batch_norm(const float* __restrict__ x, const float* __restrict__ gamma, const float* __restrict__ beta,
           float* __restrict__ mean, float* __restrict__ variance, float* __restrict__ y, int rows, int columns,
           int training) {
  DYNAMIC_SHARED(float, shared);
  const int column = blockIdx.x * COLUMNS + threadIdx.x % COLUMNS, step = blockDim.x / COLUMNS;
  const int first = column < columns ? threadIdx.x / COLUMNS : rows;  // nothing to do beyond the last column
  float m = 0.f, v = 0.f;
  if (training) {
    for (int n = first; n < rows; n += step) m += __ldg(x + (size_t)n * columns + column);
    m = sum_of_column(m, shared) / rows;
    for (int n = first; n < rows; n += step) {
      const float d = __ldg(x + (size_t)n * columns + column) - m;
      v = fmaf(d, d, v);
    }
    v = sum_of_column(v, shared + blockDim.x / 32 * COLUMNS) / rows;
    if (first == 0) mean[column] = m, variance[column] = v;
  } else if (column < columns) {
    m = mean[column], v = variance[column];
  }
  if (first >= rows) return;
  const float inverse = 1.f / sqrtf(v + EPSILON), scale = __ldg(gamma + column), shift = __ldg(beta + column);
  for (int n = first; n < rows; n += step) {
    const size_t i = (size_t)n * columns + column;
    y[i] = fmaf((__ldg(x + i) - m) * inverse, scale, shift);
  }
}

// dx may be null.
extern "C" __global__ void __launch_bounds__(1024)
batch_norm_back(const float* __restrict__ x, const float* __restrict__ dy, const float* __restrict__ gamma,
                const float* __restrict__ mean, const float* __restrict__ variance, float* __restrict__ dx,
                float* __restrict__ dgamma, float* __restrict__ dbeta, float* __restrict__ dmean,
                float* __restrict__ dvariance, int rows, int columns, int training) {
  DYNAMIC_SHARED(float, shared);
  const int column = blockIdx.x * COLUMNS + threadIdx.x % COLUMNS, step = blockDim.x / COLUMNS;
  const int first = column < columns ? threadIdx.x / COLUMNS : rows;
  const float m = column < columns ? __ldg(mean + column) : 0.f;
  const float inverse = column < columns ? 1.f / sqrtf(__ldg(variance + column) + EPSILON) : 0.f;
  float slopes = 0.f, shifts = 0.f;
  for (int n = first; n < rows; n += step) {
    const size_t i = (size_t)n * columns + column;
    const float g = __ldg(dy + i);
    shifts += g;
    slopes = fmaf(g, (__ldg(x + i) - m) * inverse, slopes);
  }
  slopes = sum_of_column(slopes, shared);
  shifts = sum_of_column(shifts, shared + blockDim.x / 32 * COLUMNS);
  if (first >= rows) return;
  const float scale = __ldg(gamma + column) * inverse;
  if (first == 0) {
    dgamma[column] = slopes;
    dbeta[column] = shifts;
    dmean[column] = training ? 0.f : -scale * shifts;
    dvariance[column] = training ? 0.f : -0.5f * scale * inverse * slopes;
  }
  if (!dx) return;
  for (int n = first; n < rows; n += step) {
    const size_t i = (size_t)n * columns + column;
    const float normal = (__ldg(x + i) - m) * inverse;
    dx[i] = scale * (training ? __ldg(dy + i) - (shifts + normal * slopes) / rows : __ldg(dy + i));
  }
}

#ifdef EMULATED
EMULATE(max_pool_1)
EMULATE(max_pool_4)
EMULATE(max_pool_back_1)
EMULATE(max_pool_back_4)
EMULATE(relu)
EMULATE(relu_back)
EMULATE(dropout)
EMULATE(softmax_loss)
EMULATE(softmax_loss_back)
EMULATE(sigmoid_loss)
EMULATE(sigmoid_loss_back)
EMULATE(batch_norm)
EMULATE(batch_norm_back)
#endif
