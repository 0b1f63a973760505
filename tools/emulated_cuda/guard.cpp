// Registers a device guard for CUDA, without which a CPU build of torch has no tensors that say cuda:0.

#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {

using namespace c10;

int device_count = 1;
thread_local DeviceIndex current = 0;

// Streams are kept in Python: all of them are the default stream here.
struct EmulatedGuard final : impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  Device exchangeDevice(Device device) const override {
    Device before = getDevice();
    setDevice(device);
    return before;
  }
  Device getDevice() const override { return Device(DeviceType::CUDA, current); }
  void setDevice(Device device) const override { current = device.index(); }
  void uncheckedSetDevice(Device device) const noexcept override { current = device.index(); }
  Stream getStream(Device device) const noexcept override { return Stream(Stream::DEFAULT, device); }
  Stream getDefaultStream(Device device) const override { return getStream(device); }
  Stream exchangeStream(Stream stream) const noexcept override { return getStream(stream.device()); }
  DeviceIndex deviceCount() const noexcept override { return static_cast<DeviceIndex>(device_count); }
};

C10_REGISTER_GUARD_IMPL(CUDA, EmulatedGuard)

}  // namespace

extern "C" void set_device_count(int count) { device_count = count; }
extern "C" int get_device() { return current; }
extern "C" void set_device(int index) { current = static_cast<DeviceIndex>(index); }
