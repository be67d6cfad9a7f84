// A device that is not the CPU, in the CPU's memory: tensors of both don't mix, and each operation runs on copies.
//
// It shows on any machine what a program for a GPU forgets to put there.

#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/extension.h>

#include <cstdlib>

namespace {

constexpr auto OTHER = c10::DeviceType::PrivateUse1;
constexpr c10::DispatchKeySet KEYS(c10::DispatchKey::PrivateUse1);

struct Memory final : c10::Allocator {
    static void release(void *memory) { std::free(memory); }
    c10::DataPtr allocate(size_t bytes) override {
        void *memory = bytes ? std::malloc(bytes) : nullptr;
        return {memory, memory, &release, c10::Device(OTHER, 0)};
    }
    c10::DeleterFnPtr raw_deleter() const override { return &release; }
    void copy_data(void *to, const void *from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }
};

Memory memory;
REGISTER_ALLOCATOR(OTHER, &memory)

struct Guard final : c10::impl::NoOpDeviceGuardImpl<OTHER> {
    c10::Device exchangeDevice(c10::Device) const override { return {OTHER, 0}; }
    c10::Device getDevice() const override { return {OTHER, 0}; }
    c10::Stream getStream(c10::Device) const noexcept override { return stream(); }
    c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream(); }
    static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, c10::Device(OTHER, 0)); }
    void record(void **, const c10::Stream &, c10::DeviceIndex, c10::EventFlag) const override {}
    void block(void *, const c10::Stream &) const override {}
    bool queryEvent(void *) const override { return true; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

struct Hooks final : at::PrivateUse1HooksInterface {
    bool isBuilt() const override { return true; }
    bool isAvailable() const override { return true; }
    bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
    c10::DeviceIndex deviceCount() const override { return 1; }
    c10::DeviceIndex getCurrentDevice() const override { return 0; }
};

// The same memory, as the CPU's.
at::Tensor seen_by_cpu(const at::Tensor &tensor) {
    if (tensor.is_cpu()) return tensor;
    const auto options = tensor.options().device(at::kCPU);
    return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), options);
}

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
    return at::detail::empty_generic(size, &memory, KEYS, c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
    return at::detail::empty_strided_generic(size, stride, &memory, KEYS, c10::dtype_or_default(dtype));
}

at::Tensor copy_from(const at::Tensor &from, const at::Tensor &to, bool) {
    if (to.numel()) seen_by_cpu(to).copy_(seen_by_cpu(from));
    return to;
}

at::Tensor copy_from_and_resize(const at::Tensor &from, const at::Tensor &to) {
    to.resize_(from.sizes());
    return copy_from(from, to, false);
}

at::Scalar item(const at::Tensor &tensor) { return seen_by_cpu(tensor).item(); }

// Tensors of both kinds in one operation are refused, as CUDA does: but for single numbers, and indices.
void by_cpu(const c10::OperatorHandle &op, torch::jit::Stack *stack) {
    const auto arguments = torch::jit::last(*stack, op.schema().arguments().size());
    bool cpu = false, other = false;
    const auto look = [&](const at::Tensor &tensor) {
        if (!tensor.defined()) return;
        other |= tensor.is_privateuseone();
        cpu |= tensor.is_cpu() && tensor.dim() > 0;
    };
    for (const auto &argument : arguments) {
        if (argument.isTensor()) look(argument.toTensor());
        if (argument.isTensorList())
            for (const auto &tensor : argument.toTensorVector()) look(tensor);
    }
    TORCH_CHECK(!(cpu && other), op.schema().name(), ": expected all tensors on one device, got the CPU's among the other's");
    at::native::cpu_fallback(op, stack);
    if (!other) return;
    const size_t returns = op.schema().returns().size();
    for (size_t i = 0; i < returns; ++i) {  // of a number on the CPU and a tensor there
        auto &result = torch::jit::peek(*stack, i, returns);
        if (result.isTensor() && result.toTensor().defined() && result.toTensor().is_cpu())
            result = result.toTensor().to(c10::Device(OTHER, 0));
    }
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&by_cpu>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
    m.impl("empty.memory_format", &empty);
    m.impl("empty_strided", &empty_strided);
    m.impl("_copy_from", &copy_from);
    m.impl("_copy_from_and_resize", &copy_from_and_resize);
    m.impl("_local_scalar_dense", &item);
    m.impl("as_strided", &at::native::as_strided_tensorimpl);
    m.impl("view", &at::native::view);
    m.impl("_reshape_alias", &at::native::_reshape_alias);
    m.impl("alias", &at::native::alias);
    m.impl("unfold", &at::native::unfold);
    m.impl("resize_", static_cast<const at::Tensor &(*)(const at::Tensor &, at::IntArrayRef, std::optional<at::MemoryFormat>)>(
                          &at::native::resize_));
    m.impl("set_.source_Storage_storage_offset", &at::native::set_storage_cpu_);
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
    static Hooks hooks;
    at::RegisterPrivateUse1HooksInterface(&hooks);
    m.doc() = "registers the device when it is loaded";
}
