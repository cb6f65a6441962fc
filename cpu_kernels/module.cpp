// The kernels as operations of MLX's graph, for Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "attention.h"
#include "linear.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/mlx.h"
#include "mlx/primitives.h"
#include "pointwise.h"

namespace nb = nanobind;
namespace mx = mlx::core;

namespace {

// An evaluated array as it lies in memory.
struct View {
  explicit View(const mx::array& a)
      : data(a.data<char>()), shape(a.shape().begin(), a.shape().end()),
        strides(a.strides().begin(), a.strides().end()), dense(a.flags().row_contiguous) {}

  template <typename T>
  const T* as() const {
    return reinterpret_cast<const T*>(data);
  }

  const char* data;
  std::vector<int64_t> shape, strides;
  bool dense;
};

// Floats in order: where they are, or copied when they lie otherwise.
class Dense {
 public:
  explicit Dense(const View& v) : data_(v.as<float>()) {
    if (v.dense) return;
    int64_t size = 1;
    for (const int64_t length : v.shape) size *= length;
    copy_.reserve(size);
    add(v, 0, data_);
    data_ = copy_.data();
  }

  operator const float*() const { return data_; }

 private:
  void add(const View& v, size_t axis, const float* from) {
    if (axis == v.shape.size()) {
      copy_.push_back(*from);
      return;
    }
    for (int64_t i = 0; i < v.shape[axis]; i++) add(v, axis + 1, from + i * v.strides[axis]);
  }

  const float* data_;
  std::vector<float> copy_;
};

// (n, heads, dim) whose heads lie in order, though perhaps not one n right after another.
class Tokens {
 public:
  explicit Tokens(const View& v) {
    const bool in_order = v.strides[2] == 1 && (v.shape[1] == 1 || v.strides[1] == v.shape[2]);
    if (in_order) {
      data = v.as<float>();
      stride = v.shape[0] == 1 ? 0 : v.strides[0];
    } else {
      copy_.emplace(v);
      data = *copy_;
      stride = v.shape[1] * v.shape[2];
    }
  }

  sgl::Lines lines() const { return {.floats = data, .stride = stride}; }

  const float* data;
  int64_t stride;

 private:
  std::optional<Dense> copy_;
};

using Run = std::function<void(const std::vector<View>&, float*)>;

class Kernel : public mx::Primitive {
 public:
  Kernel(mx::Stream stream, const char* name, Run run)
      : Primitive(stream), name_(name), run_(std::move(run)) {}

  const char* name() const override { return name_; }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    mx::array& out = outputs[0];
    out.set_data(mx::allocator::malloc(out.nbytes()));
    std::vector<View> views(inputs.begin(), inputs.end());
    auto& encoder = mx::cpu::get_command_encoder(stream());
    for (const auto& input : inputs) encoder.set_input_array(input);
    encoder.set_output_array(out);
    encoder.dispatch(
        [run = run_, views = std::move(views), to = out.data<float>()] { run(views, to); });
  }

  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::runtime_error(std::string(name_) + " runs on the CPU alone");
  }

 private:
  const char* name_;
  Run run_;
};

mx::array apply(const char* name, mx::Shape shape, std::vector<mx::array> inputs, Run run) {
  const auto stream = mx::default_stream(mx::Device::cpu);
  auto kernel = std::make_shared<Kernel>(stream, name, std::move(run));
  return mx::array(std::move(shape), mx::float32, std::move(kernel), std::move(inputs));
}

void wants(const mx::array& a, mx::Dtype dtype, const char* what) {
  if (a.dtype() != dtype) throw std::invalid_argument(std::string(what) + " has a wrong dtype");
}

mx::array linear(const mx::array& x, const mx::array& q, const mx::array& scales,
                 const mx::array& biases, int bits, int group, int64_t n) {
  wants(x, mx::float32, "x");
  const int64_t k = x.shape(-1), rows = k ? x.size() / k : 0;
  if ((bits != 4 && bits != 8) || group % sgl::kDeep || k % group)
    throw std::invalid_argument("linear: 4 or 8 bits, groups of a multiple of 32 that divides K");
  if (static_cast<int64_t>(scales.size()) != (n + 15) / 16 * 16 * (k / group))
    throw std::invalid_argument("linear: the weights were packed for another width");
  mx::Shape shape = x.shape();
  shape.back() = n;
  return apply("Linear", shape, {x, q, scales, biases}, [=](const auto& in, float* y) {
    const sgl::PackedWeights w{in[1].template as<uint8_t>(), in[2].template as<float>(),
                               in[3].template as<float>(), bits, group, n, k};
    if (rows) sgl::multiply(w, Dense(in[0]), rows, y);
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

mx::array swiglu(const mx::array& gate, const mx::array& x) {
  wants(gate, mx::float32, "gate");
  wants(x, mx::float32, "x");
  if (gate.shape() != x.shape()) throw std::invalid_argument("swiglu: gate and x differ in shape");
  const int64_t size = x.size();
  return apply("Swiglu", x.shape(), {gate, x}, [=](const auto& in, float* y) {
    sgl::swiglu(Dense(in[0]), Dense(in[1]), size, y);
  });
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
    std::vector<int32_t> offsets;  // they may lie apart, or be one for all
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

using Optional = std::optional<mx::array>;

// Where the inputs of attention stand: q, keys, values, pool keys, pool values and the tables; then
// the scales of a quantized pool and the sinks, if there are any.
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

  sgl::Lines pool_keys(const std::vector<View>& in) const { return pool(in[3], in, scales); }
  sgl::Lines pool_values(const std::vector<View>& in) const { return pool(in[4], in, scales + 1); }
  const float* sink_logits(const std::vector<View>& in) const {
    return sinks ? in.back().as<float>() : nullptr;
  }

 private:
  // (slots, kv_heads, dim), in float32 or in int8 with scales
  sgl::Lines pool(const View& data, const std::vector<View>& in, size_t at) const {
    const int64_t stride = data.shape[1] * data.shape[2];
    if (!quantized) return {.floats = data.as<float>(), .stride = stride};
    return {.levels = data.as<int8_t>(), .scales = in[at].as<_Float16>(), .stride = stride};
  }

  bool quantized, sinks;
  size_t scales;
};

sgl::Heads heads_of(const mx::array& q, const mx::array& keys, float scale, int64_t window,
                    float softcap) {
  const int axis = keys.ndim() - 2;
  if (q.shape(-1) % sgl::kLanes)
    throw std::invalid_argument("attention: heads of a multiple of 16");
  return {q.shape(1), keys.shape(axis), q.shape(2), scale, window, softcap, nullptr};
}

mx::array extend_attention(const mx::array& q, const mx::array& keys, const mx::array& values,
                           const mx::array& pool_keys, const mx::array& pool_values,
                           const Optional& key_scales, const Optional& value_scales,
                           const mx::array& slots, const mx::array& table, int64_t rows,
                           float scale, int64_t window, float softcap, const Optional& sinks) {
  std::vector<mx::array> inputs{q, keys, values, pool_keys, pool_values, slots, table};
  const Order order(inputs, key_scales, value_scales, sinks);
  const sgl::Heads plain = heads_of(q, keys, scale, window, softcap);
  return apply("ExtendAttention", q.shape(), inputs, [=](const auto& in, float* out) {
    sgl::Heads heads = plain;
    heads.sinks = order.sink_logits(in);
    const Tokens queries(in[0]), new_keys(in[1]), new_values(in[2]);
    const sgl::Chunks work{in[5].template as<int32_t>(),
                           in[6].template as<int32_t>(),
                           rows,
                           order.pool_keys(in),
                           order.pool_values(in),
                           new_keys.lines(),
                           new_values.lines()};
    sgl::extend_attention(heads, work, queries.data, queries.stride, out);
  });
}

mx::array decode_attention(const mx::array& q, const mx::array& tail_keys,
                           const mx::array& tail_values, int64_t length, const mx::array& pool_keys,
                           const mx::array& pool_values, const Optional& key_scales,
                           const Optional& value_scales, const mx::array& slots,
                           const mx::array& table, const mx::array& spans, int64_t span_count,
                           int64_t tokens, float scale, int64_t window, float softcap,
                           const Optional& sinks) {
  std::vector<mx::array> inputs{q,     tail_keys, tail_values, pool_keys, pool_values,
                                slots, table,     spans};
  const Order order(inputs, key_scales, value_scales, sinks);
  const sgl::Heads plain = heads_of(q, tail_keys, scale, window, softcap);
  return apply("DecodeAttention", q.shape(), inputs, [=](const auto& in, float* out) {
    sgl::Heads heads = plain;
    heads.sinks = order.sink_logits(in);
    const Tokens queries(in[0]);
    const Dense new_keys(in[1]), new_values(in[2]);
    const int64_t stride = heads.kv_heads * heads.dim;
    const sgl::Decode work{in[5].template as<int32_t>(),
                           in[6].template as<int32_t>(),
                           in[7].template as<int32_t>(),
                           in[1].shape[0],
                           span_count,
                           tokens,
                           in[1].shape[1],
                           length,
                           order.pool_keys(in),
                           order.pool_values(in),
                           {.floats = new_keys, .stride = stride},
                           {.floats = new_values, .stride = stride}};
    sgl::decode_attention(heads, work, queries.data, queries.stride, out);
  });
}

bool multiplies_tiles() {
#ifdef SGL_TILES
  return sgl::tiles_allowed();
#else
  return false;
#endif
}

// The instruction sets that this file is compiled for, in llama.cpp's names.
std::string instruction_sets() {
  std::string names;
#ifdef __AVX__
  names += " AVX";
#endif
#ifdef __AVX2__
  names += " AVX2";
#endif
#ifdef __FMA__
  names += " FMA";
#endif
#ifdef __F16C__
  names += " F16C";
#endif
#ifdef __BMI2__
  names += " BMI2";
#endif
#ifdef __AVXVNNI__
  names += " AVX_VNNI";
#endif
#ifdef __AVX512F__
  names += " AVX512";
#endif
#ifdef __AVX512VBMI__
  names += " AVX512_VBMI";
#endif
#ifdef __AVX512VNNI__
  names += " AVX512_VNNI";
#endif
#ifdef __AVX512BF16__
  names += " AVX512_BF16";
#endif
#ifdef __AMX_INT8__
  names += " AMX_INT8";
#endif
#ifdef __AMX_BF16__
  names += " AMX_BF16";
#endif
#ifdef __ARM_NEON
  names += " NEON";
#endif
#ifdef __ARM_FEATURE_DOTPROD
  names += " DOTPROD";
#endif
#ifdef __ARM_FEATURE_MATMUL_INT8
  names += " MATMUL_INT8";
#endif
#ifdef __ARM_FEATURE_SVE
  names += " SVE";
#endif
  return names.empty() ? names : names.substr(1);
}

}  // namespace

NB_MODULE(_kernels, m) {
  m.def("start_threads", [](int count) { sgl::Threads::shared().start(count); });
  m.def("instruction_sets", &instruction_sets);
  m.def("multiplies_tiles", &multiplies_tiles);
  m.def("linear", &linear);
  m.def("rms_norm", &rms_norm, nb::arg("x"), nb::arg("weight").none(), nb::arg("eps"));
  m.def("swiglu", &swiglu);
  m.def("rope", &rope);
  m.def("extend_attention", &extend_attention);
  m.def("decode_attention", &decode_attention);
}
