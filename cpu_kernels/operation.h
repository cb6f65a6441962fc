// A kernel as an operation of MLX's graph: it runs when MLX evaluates its outputs.
#pragma once

#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "mlx/backend/cpu/encoder.h"
#include "mlx/mlx.h"
#include "mlx/primitives.h"
#include "view.h"

namespace sgl {

namespace mx = mlx::core;

using Inputs = std::vector<View>;
using Outputs = std::vector<float*>;
using Run = std::function<void(const Inputs&, const Outputs&)>;

class Operation : public mx::Primitive {
 public:
  Operation(mx::Stream stream, const char* name, Run run)
      : Primitive(stream), name_(name), run_(std::move(run)) {}

  const char* name() const override { return name_; }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    Outputs to;
    for (mx::array& output : outputs) {
      output.set_data(mx::allocator::malloc(output.nbytes()));
      encoder.set_output_array(output);
      to.push_back(output.data<float>());
    }
    for (const auto& input : inputs) encoder.set_input_array(input);
    encoder.dispatch([run = run_, from = Inputs(inputs.begin(), inputs.end()), to = std::move(to)] {
      run(from, to);
    });
  }

  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::runtime_error(std::string(name_) + " runs on the CPU alone");
  }

 private:
  const char* name_;
  Run run_;
};

// Returns arrays of float32 that `run` computes from `inputs`, one for each shape.
inline std::vector<mx::array> apply(const char* name, const std::vector<mx::Shape>& shapes,
                                    const std::vector<mx::array>& inputs, Run run) {
  const auto stream = mx::default_stream(mx::Device::cpu);
  auto operation = std::make_shared<Operation>(stream, name, std::move(run));
  const std::vector<mx::Dtype> dtypes(shapes.size(), mx::float32);
  return mx::array::make_arrays(shapes, dtypes, operation, inputs);
}

}  // namespace sgl
