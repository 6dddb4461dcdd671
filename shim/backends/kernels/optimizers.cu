// The optimizers' steps, each one pass over weights, gradients and states; see shim/models/optimizers.py.
//
// `rate` is the learning rate of the step, Adam's with its corrections. It is read from memory, so that a launch that
// is repeated takes that of its step. A running average moves towards a value by `mix`, one minus its rho or beta.
#ifdef EMULATED
#include "emulation.h"
#endif
typedef unsigned long long Word;

__device__ __forceinline__ float average(float before, float value, float mix) {
  return fmaf(mix, value - before, before);
}

// Exact to one or two of the last bits; the exact ones would take longer than the memory.
__device__ __forceinline__ float root(float x) {
#ifdef __CUDA_ARCH__
  asm("sqrt.approx.f32 %0, %0;" : "+f"(x));
  return x;
#else
  return sqrtf(x);
#endif
}

struct Sgd {
  float lr;
  __device__ __forceinline__ void operator()(float& p, float g, float&, float&) const { p -= lr * g; }
};

struct RmsProp {
  float lr, mix, epsilon;
  __device__ __forceinline__ void operator()(float& p, float g, float& v, float&) const {
    v = average(v, g * g, mix);
    p -= __fdividef(lr * g, root(v + epsilon));
  }
};

struct Adam {
  float lr, mix_1, mix_2, epsilon;
  __device__ __forceinline__ void operator()(float& p, float g, float& m, float& v) const {
    m = average(m, g, mix_1);
    v = average(v, g * g, mix_2);
    p -= __fdividef(lr * m, root(v) + epsilon);
  }
};

struct AdaDelta {
  float lr, mix, epsilon;
  __device__ __forceinline__ void operator()(float& p, float g, float& a, float& u) const {
    a = average(a, g * g, mix);
    const float d = g * root(__fdividef(u + epsilon, a + epsilon));
    u = average(u, d * d, mix);
    p -= lr * d;
  }
};

constexpr int CHUNK = 1024;  // elements of a weight for a block of 256 threads

struct Weight {
  float* p;
  const float* g;
  float *a, *b;  // the states
  unsigned size, first;  // elements, the first of its blocks
};

// Sixteen weights as arguments; those that are left over come first in a block that there is not.
#define WEIGHT(K) float *p##K, const float *g##K, float *a##K, float *b##K, unsigned size##K, unsigned first##K
#define WEIGHTS                                                                                                   \
  WEIGHT(0), WEIGHT(1), WEIGHT(2), WEIGHT(3), WEIGHT(4), WEIGHT(5), WEIGHT(6), WEIGHT(7), WEIGHT(8), WEIGHT(9),   \
      WEIGHT(10), WEIGHT(11), WEIGHT(12), WEIGHT(13), WEIGHT(14), WEIGHT(15)
#define CHOOSE(K) \
  if (blockIdx.x >= first##K) w = Weight{p##K, g##K, a##K, b##K, size##K, first##K};
#define CHOSEN                                                                                                    \
  Weight w{};                                                                                                     \
  CHOOSE(0) CHOOSE(1) CHOOSE(2) CHOOSE(3) CHOOSE(4) CHOOSE(5) CHOOSE(6) CHOOSE(7) CHOOSE(8) CHOOSE(9) CHOOSE(10) \
  CHOOSE(11) CHOOSE(12) CHOOSE(13) CHOOSE(14) CHOOSE(15)

// Move a chunk of a weight that has so many STATES, by vectors if its arrays begin where vectors may.
template <int STATES, class Step>
__device__ __forceinline__ void move(const Weight& w, Step step) {
  const unsigned start = (blockIdx.x - w.first) * CHUNK, i = start + 4 * threadIdx.x;
  const size_t places = (size_t)w.p | (size_t)w.g | (STATES > 0 ? (size_t)w.a : 0) | (STATES > 1 ? (size_t)w.b : 0);
  if (places % 16 == 0 && start + CHUNK <= w.size) {
    float4 p = *reinterpret_cast<float4*>(w.p + i), a{}, b{};
    const float4 g = *reinterpret_cast<const float4*>(w.g + i);
    if (STATES > 0) a = *reinterpret_cast<float4*>(w.a + i);
    if (STATES > 1) b = *reinterpret_cast<float4*>(w.b + i);
    step(p.x, g.x, a.x, b.x);
    step(p.y, g.y, a.y, b.y);
    step(p.z, g.z, a.z, b.z);
    step(p.w, g.w, a.w, b.w);
    *reinterpret_cast<float4*>(w.p + i) = p;
    if (STATES > 0) *reinterpret_cast<float4*>(w.a + i) = a;
    if (STATES > 1) *reinterpret_cast<float4*>(w.b + i) = b;
    return;
  }
  for (unsigned k = start + threadIdx.x; k < min(start + CHUNK, w.size); k += blockDim.x) {
    float p = w.p[k], a = STATES > 0 ? w.a[k] : 0.f, b = STATES > 1 ? w.b[k] : 0.f;
    step(p, w.g[k], a, b);
    w.p[k] = p;
    if (STATES > 0) w.a[k] = a;
    if (STATES > 1) w.b[k] = b;
  }
}

extern "C" __global__ void __launch_bounds__(256) sgd(WEIGHTS, const float* rate) {
  CHOSEN
  move<0>(w, Sgd{__ldg(rate)});
}

extern "C" __global__ void __launch_bounds__(256) rmsprop(WEIGHTS, const float* rate, float mix, float epsilon) {
  CHOSEN
  move<1>(w, RmsProp{__ldg(rate), mix, epsilon});
}

extern "C" __global__ void __launch_bounds__(256)
adam(WEIGHTS, const float* rate, float mix_1, float mix_2, float epsilon) {
  CHOSEN
  move<2>(w, Adam{__ldg(rate), mix_1, mix_2, epsilon});
}

extern "C" __global__ void __launch_bounds__(256) adadelta(WEIGHTS, const float* rate, float mix, float epsilon) {
  CHOSEN
  move<2>(w, AdaDelta{__ldg(rate), mix, epsilon});
}

template <int SIZE>
struct __attribute__((aligned(4 * SIZE))) Vector {
  float v[SIZE];
};

template <int SIZE>
__device__ __forceinline__ Vector<SIZE> streamed(const float* p);
template <>
__device__ __forceinline__ Vector<1> streamed<1>(const float* p) {
  return {{__ldcs(p)}};
}
template <>
__device__ __forceinline__ Vector<4> streamed<4>(const float* p) {
  const float4 x = __ldcs(reinterpret_cast<const float4*>(p));
  return {{x.x, x.y, x.z, x.w}};
}
__device__ __forceinline__ void stream(float* p, Vector<1> x) { __stcs(p, x.v[0]); }
__device__ __forceinline__ void stream(float* p, Vector<4> x) {
  __stcs(reinterpret_cast<float4*>(p), make_float4(x.v[0], x.v[1], x.v[2], x.v[3]));
}

// Move a whole table (V, W) of `size` elements. Its gradient `values` (V, W) is zero but in rows whose stamp is `step`;
// `clear` makes it zero there, too. The row of an element is its number times `factor`, shifted. Four elements must not
// lie in more than two rows.
template <int SIZE>
__device__ __forceinline__ void adam_touched(float* __restrict__ p, float* __restrict__ values,
                                             const int* __restrict__ stamps, const int* __restrict__ step,
                                             float* __restrict__ m, float* __restrict__ v,
                                             const float* __restrict__ rate, unsigned size, unsigned factor, int shift,
                                             int clear, float mix_1, float mix_2, float epsilon) {
  const unsigned i = (blockIdx.x * blockDim.x + threadIdx.x) * SIZE;
  const int now = __ldg(step);
  const Adam adam{__ldg(rate), mix_1, mix_2, epsilon};
  if (i + SIZE > size) {
    for (unsigned k = i; k < size; ++k) {
      const float g = __ldg(stamps + ((Word)k * factor >> shift)) == now ? values[k] : 0.f;
      if (clear) values[k] = 0.f;
      adam(p[k], g, m[k], v[k]);
    }
    return;
  }
  Vector<SIZE> p_i = streamed<SIZE>(p + i), m_i = streamed<SIZE>(m + i), v_i = streamed<SIZE>(v + i), g = {};
  const unsigned first = (Word)i * factor >> shift, last = (Word)(i + SIZE - 1) * factor >> shift;
  if (__ldg(stamps + first) == now || (SIZE > 1 && __ldg(stamps + last) == now)) {
    g = streamed<SIZE>(values + i);
    if (clear) stream(values + i, Vector<SIZE>{});
  }
#pragma unroll
  for (int e = 0; e < SIZE; ++e) adam(p_i.v[e], g.v[e], m_i.v[e], v_i.v[e]);
  stream(p + i, p_i);
  stream(m + i, m_i);
  stream(v + i, v_i);
}

#define TOUCHED(SIZE)                                                                                                \
  extern "C" __global__ void __launch_bounds__(256) adam_touched_##SIZE(                                             \
      float* p, float* values, const int* stamps, const int* step, float* m, float* v, const float* rate,            \
      unsigned size, unsigned factor, int shift, int clear, float mix_1, float mix_2, float epsilon) {               \
    adam_touched<SIZE>(p, values, stamps, step, m, v, rate, size, factor, shift, clear, mix_1, mix_2, epsilon);      \
  }
TOUCHED(1)
TOUCHED(4)

// Go on to the next step: its number, from 1 on, its learning rate, and the state of the generator after so many words.
// `log_1` and `log_2` are the logarithms of Adam's betas, 0 for the others, which have no corrections.
extern "C" __global__ void next_step(int* step, float* rate, Word* state, float learning_rate, float decay, float log_1,
                                     float log_2, int words) {
  const int t = *step + 1;
  double now = learning_rate / (1. + (double)decay * (t - 1));
  if (log_1 != 0.f) now *= sqrt(-expm1((double)log_2 * t)) / -expm1((double)log_1 * t);
  *step = t;
  *rate = now;
  if (state) *state += words * 0x9E3779B97F4A7C15;
}

#ifdef EMULATED
EMULATE(sgd)
EMULATE(rmsprop)
EMULATE(adam)
EMULATE(adadelta)
EMULATE(adam_touched_1)
EMULATE(adam_touched_4)
EMULATE(next_step)
#endif
