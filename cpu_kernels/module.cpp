// The Python module: each function checks its arguments and adds one kernel to MLX's graph.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <string>
#include <utility>

#include "attention.h"
#include "experts.h"
#include "instruction_sets.h"
#include "linear.h"
#include "operation.h"
#include "pointwise.h"
#include "recurrent.h"

namespace nb = nanobind;
namespace mx = mlx::core;

namespace {

using sgl::Dense, sgl::Inputs, sgl::Lines, sgl::Outputs, sgl::Run, sgl::TokenLines, sgl::View;
using Optional = std::optional<mx::array>;

// Throws unless `a` has this dtype.
void wants(const mx::array& a, mx::Dtype dtype, const char* what) {
  if (a.dtype() != dtype) throw std::invalid_argument(std::string(what) + " has a wrong dtype");
}

// Adds an operation with one output to MLX's graph.
mx::array apply(const char* name, const mx::Shape& shape, const std::vector<mx::array>& inputs,
                std::function<void(const Inputs&, float*)> run) {
  return sgl::apply(name, {shape}, inputs, [run = std::move(run)](const auto& in, const auto& out) {
    run(in, out[0]);
  })[0];
}

// Checks that weights of n x k were packed in groups like these, for each of `count` experts.
void wants_packed(const mx::array& scales, int64_t count, int bits, int group, int64_t n,
                  int64_t k) {
  if ((bits != 4 && bits != 8) || group % sgl::kDeep || k % group)
    throw std::invalid_argument(
        "weights need 4 or 8 bits and groups of a multiple of 32 dividing K");
  if (static_cast<int64_t>(scales.size()) != count * ((n + 15) / 16 * 16) * (k / group))
    throw std::invalid_argument("the weights were packed for another width");
}

sgl::PackedWeights packed(const Inputs& in, int bits, int group, int64_t n, int64_t k) {
  return {in[1].as<uint8_t>(), in[2].as<float>(), in[3].as<float>(), bits, group, n, k};
}

mx::array linear(const mx::array& x, const mx::array& q, const mx::array& scales,
                 const mx::array& biases, int bits, int group, int64_t n) {
  wants(x, mx::float32, "x");
  const int64_t k = x.shape(-1), rows = k ? x.size() / k : 0;
  wants_packed(scales, 1, bits, group, n, k);
  mx::Shape shape = x.shape();
  shape.back() = n;
  return apply("Linear", shape, {x, q, scales, biases}, [=](const auto& in, float* y) {
    if (rows) sgl::multiply(packed(in, bits, group, n, k), Dense(in[0]), rows, y);
  });
}

// x (rows, K), experts (rows * repeats,): row i of the result (rows * repeats, N) is row i /
// repeats of x times the weights of expert experts[i].
mx::array linear_of_experts(const mx::array& x, const mx::array& experts, const mx::array& q,
                            const mx::array& scales, const mx::array& biases, int bits, int group,
                            int64_t n, int64_t count) {
  wants(x, mx::float32, "x");
  wants(experts, mx::int32, "experts");
  const int64_t k = x.shape(-1), rows = experts.size(), from = k ? x.size() / k : 0;
  wants_packed(scales, count, bits, group, n, k);
  if (!from || rows % from)
    throw std::invalid_argument("experts must be a multiple of the rows of x");
  const mx::Shape shape{static_cast<int>(rows), static_cast<int>(n)};
  return apply("LinearOfExperts", shape, {x, q, scales, biases, mx::contiguous(experts)},
               [=](const auto& in, float* y) {
                 const sgl::PackedExperts all{packed(in, bits, group, n, k), count};
                 sgl::multiply_experts(all, Dense(in[0]), rows / from, in[4].template as<int32_t>(),
                                       rows, y);
               });
}

mx::array rms_norm(const mx::array& x, const std::optional<mx::array>& weight, float eps) {
  wants(x, mx::float32, "x");
  const int64_t width = x.shape(-1), rows = width ? x.size() / width : 0;
  std::vector<mx::array> inputs{x};
  if (weight) {
    wants(*weight, mx::float32, "weight");
    inputs.push_back(*weight);
  }
  return apply("RmsNorm", x.shape(), inputs, [=](const auto& in, float* y) {
    if (in.size() == 1) return sgl::rms_norm(Dense(in[0]), nullptr, eps, rows, width, y);
    sgl::rms_norm(Dense(in[0]), Dense(in[1]), eps, rows, width, y);
  });
}

mx::array silu(const mx::array& gate) {
  wants(gate, mx::float32, "gate");
  const int64_t size = gate.size();
  return apply("Silu", gate.shape(), {gate},
               [=](const auto& in, float* y) { sgl::swiglu(Dense(in[0]), nullptr, size, y); });
}

mx::array swiglu(const mx::array& gate, const mx::array& x) {
  wants(gate, mx::float32, "gate");
  wants(x, mx::float32, "x");
  if (gate.shape() != x.shape()) throw std::invalid_argument("swiglu: gate and x differ in shape");
  const int64_t size = x.size();
  return apply("Swiglu", x.shape(), {gate, x},
               [=](const auto& in, float* y) { sgl::swiglu(Dense(in[0]), Dense(in[1]), size, y); });
}

mx::array rope(const mx::array& x, const mx::array& offset, int64_t dims, bool traditional,
               float base, float scale, const std::vector<float>& frequencies) {
  wants(x, mx::float32, "x");
  wants(offset, mx::int32, "offset");
  if (x.ndim() != 4 || dims > x.shape(3))
    throw std::invalid_argument("rope: x must be (B, H, L, D)");
  const sgl::Rope how{dims, traditional, base, scale, frequencies};
  const bool one = offset.size() == 1;
  return apply("Rope", x.shape(), {x, offset}, [=](const auto& in, float* y) {
    const View &v = in[0], &at = in[1];
    std::vector<int32_t> offsets;  // copied, since the array may have gaps
    for (int64_t b = 0; b < (one ? 1 : v.shape[0]); b++)
      offsets.push_back(at.template as<int32_t>()[one ? 0 : b * at.strides[0]]);
    const auto& s = v.shape;
    if (v.strides[3] == 1) {
      const auto* from = v.template as<float>();
      sgl::rope(how, from, v.strides.data(), s.data(), offsets.data(), one, y);
    } else {
      const int64_t strides[] = {s[1] * s[2] * s[3], s[2] * s[3], s[3], 1};
      sgl::rope(how, Dense(v), strides, s.data(), offsets.data(), one, y);
    }
  });
}

// Order of attention's inputs: q, keys, values, pool keys, pool values and the tables; then the
// scales of a quantized pool, if it is one, and the sinks, if there are any.
struct Order {
  Order(std::vector<mx::array>& inputs, const Optional& key_scales, const Optional& value_scales,
        const Optional& sinks)
      : quantized(key_scales.has_value()), sinks(sinks.has_value()), scales(inputs.size()) {
    for (int i = 0; i < 3; i++) wants(inputs[i], mx::float32, "q, keys or values");
    for (int i = 3; i < 5; i++) wants(inputs[i], quantized ? mx::int8 : mx::float32, "the pool");
    if (quantized) inputs.insert(inputs.end(), {*key_scales, value_scales.value()});
    if (!sinks) return;
    wants(*sinks, mx::float32, "sinks");
    inputs.push_back(*sinks);
  }

  Lines pool_keys(const Inputs& in) const { return pool(in[3], in, scales); }
  Lines pool_values(const Inputs& in) const { return pool(in[4], in, scales + 1); }
  const float* sink_logits(const Inputs& in) const {
    return sinks ? in.back().as<float>() : nullptr;
  }

 private:
  // Lines of a pool (slots, kv_heads, dim), in float32 or in int8 with scales.
  Lines pool(const View& data, const Inputs& in, size_t at) const {
    Lines lines{.stride = data.strides[0], .head_stride = data.strides[1], .heads = data.shape[1]};
    if (quantized) {
      lines.levels = data.as<int8_t>();
      lines.scales = in[at].as<_Float16>();
    } else {
      lines.floats = data.as<float>();
    }
    return lines;
  }

  bool quantized, sinks;
  size_t scales;
};

// Returns the widths and options of attention, still without sinks.
sgl::Heads heads_of(const mx::array& q, const mx::array& keys, const mx::array& values, float scale,
                    int64_t window, float softcap) {
  if (q.shape(2) % 16 || values.shape(-1) % 16)
    throw std::invalid_argument("attention: keys and values must have a multiple of 16 elements");
  return {q.shape(1), keys.shape(-2), q.shape(2), values.shape(-1),
          scale,      window,         softcap,    nullptr};
}

mx::array extend_attention(const mx::array& q, const mx::array& keys, const mx::array& values,
                           const mx::array& pool_keys, const mx::array& pool_values,
                           const Optional& key_scales, const Optional& value_scales,
                           const mx::array& slots, const mx::array& table, int64_t rows,
                           float scale, int64_t window, float softcap, const Optional& sinks) {
  std::vector<mx::array> inputs{q, keys, values, pool_keys, pool_values, slots, table};
  const Order order(inputs, key_scales, value_scales, sinks);
  const sgl::Heads plain = heads_of(q, keys, values, scale, window, softcap);
  const mx::Shape shape{q.shape(0), q.shape(1), values.shape(-1)};
  return apply("ExtendAttention", shape, inputs, [=](const auto& in, float* out) {
    sgl::Heads heads = plain;
    heads.sinks = order.sink_logits(in);
    const TokenLines queries(in[0]), new_keys(in[1]), new_values(in[2]);
    const auto *slots = in[5].template as<int32_t>(), *table = in[6].template as<int32_t>();
    const sgl::Chunks work{slots,    table,     rows, order.pool_keys(in), order.pool_values(in),
                           new_keys, new_values};
    sgl::extend_attention(heads, work, queries, out);
  });
}

mx::array decode_attention(const mx::array& q, const mx::array& tail_keys,
                           const mx::array& tail_values, int64_t length, const mx::array& pool_keys,
                           const mx::array& pool_values, const Optional& key_scales,
                           const Optional& value_scales, const mx::array& slots,
                           const mx::array& table, const mx::array& spans, int64_t span_count,
                           int64_t tokens, float scale, int64_t window, float softcap,
                           const Optional& sinks) {
  std::vector<mx::array> inputs{q,           tail_keys, tail_values, pool_keys,
                                pool_values, slots,     table,       spans};
  const Order order(inputs, key_scales, value_scales, sinks);
  const sgl::Heads plain = heads_of(q, tail_keys, tail_values, scale, window, softcap);
  const mx::Shape shape{q.shape(0), q.shape(1), tail_values.shape(-1)};
  return apply("DecodeAttention", shape, inputs, [=](const auto& in, float* out) {
    sgl::Heads heads = plain;
    heads.sinks = order.sink_logits(in);
    const TokenLines queries(in[0]), new_keys(in[1]), new_values(in[2]);
    const auto *slots = in[5].template as<int32_t>(), *table = in[6].template as<int32_t>();
    const sgl::Decode work{slots,
                           table,
                           in[7].template as<int32_t>(),
                           in[1].shape[0],
                           span_count,
                           tokens,
                           in[1].shape[1],
                           length,
                           order.pool_keys(in),
                           order.pool_values(in),
                           new_keys,
                           new_values};
    sgl::decode_attention(heads, work, queries, out);
  });
}

// Returns y (tokens, value heads, value dim) and the new states. q and k are (tokens, key heads,
// key dim), v (tokens, value heads, value dim), decay (tokens, value heads) or (…, key dim), beta
// (tokens, value heads), states (rows, value heads, value dim, key dim); `lengths` are the rows'
// tokens.
std::pair<mx::array, mx::array> recur(const char* name, bool corrects, const mx::array& q,
                                      const mx::array& k, const mx::array& v,
                                      const mx::array& decay, const mx::array& beta,
                                      const Optional& skip, const mx::array& states,
                                      const std::vector<int64_t>& lengths) {
  std::vector<mx::array> inputs{q, k, v, decay, beta, states};
  if (skip) inputs.push_back(*skip);
  for (const auto& x : inputs) wants(x, mx::float32, "an input of a recurrence");
  sgl::Recurrence plain{.skip = nullptr, .lengths = lengths, .corrects = corrects};
  plain.key_heads = k.shape(1);
  plain.value_heads = v.shape(1);
  plain.key_dim = k.shape(2);
  plain.value_dim = v.shape(2);
  plain.by_channel = decay.ndim() == 3;
  int64_t tokens = 0;
  for (const int64_t length : lengths) tokens += length;
  if (tokens != v.shape(0) || static_cast<int64_t>(lengths.size()) != states.shape(0))
    throw std::invalid_argument("lengths must name the tokens of each row of states");
  if (plain.key_dim % 16 || plain.value_heads % plain.key_heads || q.shape() != k.shape())
    throw std::invalid_argument("q and k need a multiple of 16 elements, and heads that divide v's");
  const auto outputs = sgl::apply(
      name, {v.shape(), states.shape()}, inputs, [=](const auto& in, const auto& out) {
        const TokenLines queries(in[0]), keys(in[1]), values(in[2]);
        const Dense decays(in[3]), betas(in[4]);
        const std::optional<Dense> skips = in.size() == 7 ? std::optional<Dense>(in[6])
                                                          : std::nullopt;
        sgl::Recurrence work = plain;
        work.q = queries;
        work.k = keys;
        work.v = values;
        work.decay = decays;
        work.beta = betas;
        if (skips) work.skip = *skips;
        sgl::recur(work, Dense(in[5]), out[1], out[0]);
      });
  return {outputs[0], outputs[1]};
}

std::pair<mx::array, mx::array> gated_delta(const mx::array& q, const mx::array& k,
                                            const mx::array& v, const mx::array& decay,
                                            const mx::array& beta, const mx::array& states,
                                            const std::vector<int64_t>& lengths) {
  return recur("GatedDelta", true, q, k, v, decay, beta, std::nullopt, states, lengths);
}

// Mamba-2 in the words of `recur`: q is C, k is B, v is x, beta is dt, and skip is D.
std::pair<mx::array, mx::array> state_space(const mx::array& C, const mx::array& B,
                                            const mx::array& x, const mx::array& decay,
                                            const mx::array& dt, const mx::array& D,
                                            const mx::array& states,
                                            const std::vector<int64_t>& lengths) {
  return recur("StateSpace", false, C, B, x, decay, dt, D, states, lengths);
}

// a (…, heads, dim), A_log (heads,), bias (heads, dim); a `bound` of 0 means none.
mx::array channel_decay(const mx::array& a, const mx::array& A_log, const mx::array& bias,
                        float bound) {
  const std::vector<mx::array> inputs{a, A_log, bias};
  for (const auto& x : inputs) wants(x, mx::float32, "an input of the decay");
  const int64_t heads = a.shape(-2), dim = a.shape(-1), tokens = a.size() / (heads * dim);
  if (dim % 16 || bias.shape() != mx::Shape{a.shape(-2), a.shape(-1)} ||
      A_log.shape() != mx::Shape{a.shape(-2)})
    throw std::invalid_argument(
        "decay needs A_log (heads,), bias (heads, dim) and a multiple of 16 as dim");
  return apply("ChannelDecay", a.shape(), inputs, [=](const auto& in, float* y) {
    sgl::channel_decay(Dense(in[0]), Dense(in[1]), Dense(in[2]), bound, tokens, heads, dim, y);
  });
}

// x (rows, length + width - 1, channels), weights (width, channels), bias (channels,) or none.
mx::array short_convolution(const mx::array& x, const mx::array& weights, const Optional& bias) {
  std::vector<mx::array> inputs{x, weights};
  if (bias) inputs.push_back(*bias);
  for (const auto& a : inputs) wants(a, mx::float32, "an input of the convolution");
  const int64_t rows = x.shape(0), width = weights.shape(0), channels = x.shape(2);
  const int64_t length = x.shape(1) - width + 1;
  if (length < 0 || weights.shape(1) != channels)
    throw std::invalid_argument(
        "the convolution needs (length + width - 1) tokens, and weights "
        "(width, channels) for the channels of x");
  const mx::Shape shape{x.shape(0), static_cast<int>(length), x.shape(2)};
  return apply("ShortConvolution", shape, inputs, [=](const auto& in, float* y) {
    const std::optional<Dense> biases = in.size() == 3 ? std::optional<Dense>(in[2]) : std::nullopt;
    const float* bias = biases ? static_cast<const float*>(*biases) : nullptr;
    sgl::short_convolution(Dense(in[0]), Dense(in[1]), bias, rows, length, width, channels, y);
  });
}

}  // namespace

NB_MODULE(_kernels, m) {
  m.def("start_threads", [](int count) { sgl::Threads::shared().start(count); });
  m.def("instruction_sets", &sgl::instruction_sets);
  m.def("multiplies_tiles", &sgl::multiplies_tiles);
  m.def("linear", &linear);
  m.def("linear_of_experts", &linear_of_experts);
  m.def("rms_norm", &rms_norm, nb::arg("x"), nb::arg("weight").none(), nb::arg("eps"));
  m.def("silu", &silu);
  m.def("swiglu", &swiglu);
  m.def("rope", &rope);
  m.def("extend_attention", &extend_attention);
  m.def("decode_attention", &decode_attention);
  m.def("gated_delta", &gated_delta);
  m.def("state_space", &state_space);
  m.def("channel_decay", &channel_decay);
  m.def("short_convolution", &short_convolution, nb::arg("x"), nb::arg("weights"),
        nb::arg("bias").none());
}
