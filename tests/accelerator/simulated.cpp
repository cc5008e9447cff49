// A simulated accelerator for torch's PrivateUse1 device: two devices whose memory is host memory, and whose kernels are
// torch's CPU kernels, run later. It is asynchronous, as CUDA is, and less forgiving:
//
// - A stream is a thread with a queue. A kernel, a copy or an event is a task in it.
// - Memory is filled with 0xFF (NaN) when it is allocated, and again when it is freed, in the order of the stream that
//   it was allocated on and of those that record_stream named.
// - Reading a value on the host waits for the stream, and is counted by operator.
//
// The header that documents each interface is named where it is implemented.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/InferSize.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/ops/_local_scalar_dense.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

namespace {

using at::Tensor;
using c10::Device;
using c10::DeviceIndex;
using c10::DispatchKey;
using c10::IValue;
using c10::Stream;
using torch::jit::Stack;

constexpr auto SIM = c10::DeviceType::PrivateUse1;
constexpr int DEVICES = 2;
constexpr int STREAMS = 32;  // in the pool of each device, handed out in turn, as CUDA's are
constexpr int POISON = 0xFF;
constexpr size_t QUARANTINE = size_t(256) << 20;  // bytes of freed memory that are kept, so that late readers see poison

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// ---------------------------------------------------------------------------------------------------------
// state, which tests read and set through the functions at the end
// ---------------------------------------------------------------------------------------------------------

enum Kind { KERNEL, COPY, OTHER };

struct Ran {
  int64_t kind, device, stream, begin, end;
};

struct State {
  std::atomic<int64_t> delay_ns[3]{};  // added to each task, by kind
  std::atomic<int64_t> launches{0};
  std::atomic<bool> used[DEVICES]{};  // whether a device was used at all: its context, on a GPU
  std::atomic<bool> bad_fork{false};
  std::atomic<bool> tracing{false};
  std::mutex mutex;
  std::map<std::string, int64_t> waits;  // of the host for the device, by operator
  std::vector<Ran> trace;
  std::string error;  // of a kernel; raised from the next wait on, as a device-side assertion is
};

State& state() {
  static auto* one = new State;  // never destroyed: streams may outlive main
  return *one;
}

bool any_used() {
  return state().used[0] || state().used[1];
}

void use(DeviceIndex device) {
  TORCH_CHECK(!state().bad_fork, "Cannot re-initialize the simulated accelerator in a forked process");
  state().used[device] = true;
}

void count_wait(const std::string& name) {
  std::lock_guard<std::mutex> lock(state().mutex);
  ++state().waits[name];
}

void failed(const char* text) {
  std::lock_guard<std::mutex> lock(state().mutex);
  if (state().error.empty()) {
    state().error = text;
  }
}

void raise_error() {  // again at each wait and question from then on, as on a GPU
  std::string text;
  {
    std::lock_guard<std::mutex> lock(state().mutex);
    text = state().error;
  }
  if (!text.empty()) {
    throw c10::AcceleratorError({__func__, __FILE__, __LINE__}, 710, "simulated accelerator: a kernel failed: " + text);
  }
}

// ---------------------------------------------------------------------------------------------------------
// streams and events
// ---------------------------------------------------------------------------------------------------------

class Queue {
 public:
  Queue(int device, int64_t id) : device_(device), id_(id) {}

  void push(Kind kind, std::function<void()> task) {
    use(static_cast<DeviceIndex>(device_));
    push_freed(kind, std::move(task));
  }

  void push_freed(Kind kind, std::function<void()> task) {  // that memory was freed is no use of a device
    std::lock_guard<std::mutex> lock(mutex_);
    if (!started_) {
      started_ = true;
      std::thread([this] { run(); }).detach();
    }
    tasks_.emplace_back(kind, std::move(task));
    ++issued_;
    work_.notify_one();
  }

  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    const auto target = issued_;
    idle_.wait(lock, [&] { return done_ >= target; });
  }

  bool query() {
    std::lock_guard<std::mutex> lock(mutex_);
    return done_ == issued_;
  }

  bool started() {
    std::lock_guard<std::mutex> lock(mutex_);
    return started_;
  }

 private:
  [[noreturn]] void run() {
    pthread_setname_np(pthread_self(), "sim-stream");
    c10::impl::ExcludeDispatchKeyGuard plain(c10::autograd_dispatch_keyset_with_ADInplaceOrView);
    for (;;) {
      std::pair<Kind, std::function<void()>> task;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        work_.wait(lock, [&] { return !tasks_.empty(); });
        task = std::move(tasks_.front());
        tasks_.pop_front();
      }
      const auto begin = now_ns();
      if (const int64_t delay = state().delay_ns[task.first]) {
        std::this_thread::sleep_for(std::chrono::nanoseconds(delay));
      }
      try {
        task.second();
      } catch (const c10::Error& error) {
        failed(error.what_without_backtrace());
      } catch (const std::exception& error) {
        failed(error.what());
      }
      task.second = nullptr;  // what it holds is freed before it is reported as done
      if (task.first != OTHER && state().tracing) {
        std::lock_guard<std::mutex> lock(state().mutex);
        state().trace.push_back({task.first, device_, id_, begin, now_ns()});
      }
      std::lock_guard<std::mutex> lock(mutex_);
      ++done_;
      idle_.notify_all();
    }
  }

  const int device_;
  const int64_t id_;
  std::mutex mutex_;
  std::condition_variable work_, idle_;
  std::deque<std::pair<Kind, std::function<void()>>> tasks_;
  uint64_t issued_ = 0, done_ = 0;
  bool started_ = false;
};

Queue& queue(DeviceIndex device, c10::StreamId id) {
  static auto* all = [] {
    auto* made = new std::vector<std::unique_ptr<Queue>>;
    for (int d = 0; d < DEVICES; ++d) {
      for (int s = 0; s <= STREAMS; ++s) {
        made->push_back(std::make_unique<Queue>(d, s));
      }
    }
    return made;
  }();
  return *(*all)[device * (STREAMS + 1) + id];
}

Queue& queue(const Stream& stream) {
  return queue(stream.device_index(), stream.id());
}

thread_local DeviceIndex current_device = 0;
thread_local c10::StreamId current_stream[DEVICES] = {0, 0};

Queue& current(DeviceIndex device) {
  return queue(device, current_stream[device]);
}

void wait_for(Queue& stream, const std::string& name) {
  count_wait(name);
  stream.wait();
  raise_error();
}

void wait_device(DeviceIndex device) {
  for (int s = 0; s <= STREAMS; ++s) {
    if (queue(device, s).started()) {
      queue(device, s).wait();
    }
  }
}

struct EventState {
  std::mutex mutex;
  std::condition_variable reached;
  uint64_t recorded = 0, completed = 0;
  int64_t at_ns = 0;
  bool timed = false;
};

using Event = std::shared_ptr<EventState>;

// Source: c10/core/impl/DeviceGuardImplInterface.h
struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override {
    return SIM;
  }
  Device exchangeDevice(Device device) const override {
    auto before = Device(SIM, current_device);
    setDevice(device);
    return before;
  }
  Device getDevice() const override {
    return Device(SIM, current_device);
  }
  void setDevice(Device device) const override {
    if (device.index() >= 0) {
      TORCH_CHECK(device.index() < DEVICES, "simulated accelerator: there is no device ", int(device.index()));
      current_device = device.index();
    }
  }
  void uncheckedSetDevice(Device device) const noexcept override {
    if (device.index() >= 0 && device.index() < DEVICES) {
      current_device = device.index();
    }
  }
  DeviceIndex deviceCount() const noexcept override {
    return DEVICES;
  }
  Stream at(DeviceIndex device, c10::StreamId id) const {
    return Stream(Stream::UNSAFE, Device(SIM, device), id);
  }
  Stream getStream(Device device) const override {
    const auto index = device.index() < 0 ? current_device : device.index();
    return at(index, current_stream[index]);
  }
  Stream getDefaultStream(Device device) const override {
    return at(device.index() < 0 ? current_device : device.index(), 0);
  }
  Stream getStreamFromGlobalPool(Device device, bool) const override {
    return getNewStream(device, 0);
  }
  Stream getNewStream(Device device, int) const override {
    static std::atomic<uint32_t> next{0};
    return at(device.index() < 0 ? current_device : device.index(), 1 + next++ % STREAMS);
  }
  Stream exchangeStream(Stream stream) const override {
    auto before = getStream(stream.device());
    current_stream[stream.device_index()] = stream.id();
    return before;
  }
  bool queryStream(const Stream& stream) const override {
    return queue(stream).query();
  }
  void synchronizeStream(const Stream& stream) const override {
    wait_for(queue(stream), "stream.synchronize");
  }
  void synchronizeDevice(const DeviceIndex device) const override {
    count_wait("device.synchronize");
    wait_device(device < 0 ? current_device : device);
    raise_error();
  }
  void record(void** event, const Stream& stream, const DeviceIndex, const c10::EventFlag flag) const override {
    if (*event == nullptr) {
      *event = new Event(std::make_shared<EventState>());
    }
    auto shared = *static_cast<Event*>(*event);
    uint64_t version = 0;
    {
      std::lock_guard<std::mutex> lock(shared->mutex);
      version = ++shared->recorded;
      shared->timed = flag == c10::EventFlag::BACKEND_DEFAULT;
    }
    queue(stream).push(OTHER, [shared, version] {
      std::lock_guard<std::mutex> lock(shared->mutex);
      shared->completed = version;
      shared->at_ns = now_ns();
      shared->reached.notify_all();
    });
  }
  void block(void* event, const Stream& stream) const override {
    if (event == nullptr) {
      return;
    }
    auto shared = *static_cast<Event*>(event);
    uint64_t version = 0;
    {
      std::lock_guard<std::mutex> lock(shared->mutex);
      version = shared->recorded;
    }
    queue(stream).push(OTHER, [shared, version] {
      std::unique_lock<std::mutex> lock(shared->mutex);
      shared->reached.wait(lock, [&] { return shared->completed >= version; });
    });
  }
  bool queryEvent(void* event) const override {
    if (event == nullptr) {
      return true;
    }
    raise_error();
    auto& shared = **static_cast<Event*>(event);
    std::lock_guard<std::mutex> lock(shared.mutex);
    return shared.completed == shared.recorded;
  }
  void synchronizeEvent(void* event) const override {
    if (event == nullptr) {
      return;
    }
    count_wait("event.synchronize");
    auto shared = *static_cast<Event*>(event);
    {
      std::unique_lock<std::mutex> lock(shared->mutex);
      const auto version = shared->recorded;
      shared->reached.wait(lock, [&] { return shared->completed >= version; });
    }
    raise_error();
  }
  double elapsedTime(void* begin, void* end, const DeviceIndex) const override {
    TORCH_CHECK(begin != nullptr && end != nullptr, "Both events must be recorded before calculating elapsed time.");
    TORCH_CHECK(queryEvent(begin) && queryEvent(end), "Both events must be completed before calculating elapsed time.");
    auto &from = **static_cast<Event*>(begin), &to = **static_cast<Event*>(end);
    TORCH_CHECK(from.timed && to.timed, "Both events must be created with argument 'enable_timing=True'.");
    return static_cast<double>(to.at_ns - from.at_ns) / 1e6;
  }
  void destroyEvent(void* event, const DeviceIndex) const noexcept override {
    delete static_cast<Event*>(event);
  }
  void recordDataPtrOnStream(const c10::DataPtr& pointer, const Stream& stream) const override;
};

// ---------------------------------------------------------------------------------------------------------
// memory
// ---------------------------------------------------------------------------------------------------------

struct Block {
  void* memory;
  size_t bytes;
  DeviceIndex device;
  c10::StreamId stream;
  std::set<c10::StreamId> others;  // of record_stream
};

void* memory_of(size_t bytes) {
  void* memory = nullptr;
  TORCH_CHECK(posix_memalign(&memory, 64, bytes) == 0, "simulated accelerator: the host has no memory");
  std::memset(memory, POISON, bytes);
  return memory;
}

// Freed memory, given back to the system when every stream of every device has passed the instant at which it was full.
struct Quarantine {
  std::mutex mutex;
  size_t bytes = 0;
  std::vector<void*> held;

  void add(void* memory, size_t size) {
    std::shared_ptr<std::vector<void*>> leaving;
    {
      std::lock_guard<std::mutex> lock(mutex);
      held.push_back(memory);
      bytes += size;
      if (bytes < QUARANTINE) {
        return;
      }
      bytes = 0;
      leaving = std::shared_ptr<std::vector<void*>>(new std::vector<void*>(std::move(held)), [](auto* all) {
        for (void* each : *all) {
          std::free(each);
        }
        delete all;
      });
      held.clear();
    }
    for (int d = 0; d < DEVICES; ++d) {
      for (int s = 0; s <= STREAMS; ++s) {
        if (queue(d, s).started()) {
          queue(d, s).push_freed(OTHER, [leaving] {});
        }
      }
    }
  }
};

Quarantine& quarantine() {
  static auto* one = new Quarantine;
  return *one;
}

// Source: c10/core/CachingDeviceAllocator.h
struct DeviceMemory final : c10::DeviceAllocator {
  std::mutex mutex;
  int64_t used[DEVICES]{}, peak[DEVICES]{}, total[DEVICES]{}, limit[DEVICES]{};

  bool take(DeviceIndex device, size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex);
    if (limit[device] && used[device] + static_cast<int64_t>(bytes) > limit[device]) {
      return false;
    }
    used[device] += bytes;
    total[device] += bytes;
    peak[device] = std::max(peak[device], used[device]);
    return true;
  }
  void give_back(DeviceIndex device, size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex);
    used[device] -= bytes;
  }
  c10::DataPtr allocate(size_t bytes) override;
  c10::DeleterFnPtr raw_deleter() const override;
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
  bool initialized() override {
    return any_used();
  }
  void emptyCache(c10::MempoolId_t) override {}
  void recordStream(const c10::DataPtr& pointer, Stream stream) override {
    if (auto* block = static_cast<Block*>(pointer.get_context())) {
      std::lock_guard<std::mutex> lock(mutex);
      if (stream.id() != block->stream) {
        block->others.insert(stream.id());
      }
    }
  }
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(DeviceIndex device) override {
    std::lock_guard<std::mutex> lock(mutex);
    c10::CachingDeviceAllocator::DeviceStats stats;
    for (auto* all : {&stats.allocated_bytes, &stats.reserved_bytes, &stats.active_bytes, &stats.requested_bytes}) {
      (*all)[0].current = used[device];
      (*all)[0].peak = peak[device];
      (*all)[0].allocated = total[device];
    }
    return stats;
  }
  void resetAccumulatedStats(DeviceIndex device) override {
    std::lock_guard<std::mutex> lock(mutex);
    total[device] = 0;
  }
  void resetPeakStats(DeviceIndex device) override {
    std::lock_guard<std::mutex> lock(mutex);
    peak[device] = used[device];
  }
  std::pair<size_t, size_t> getMemoryInfo(DeviceIndex device) override {
    std::lock_guard<std::mutex> lock(mutex);
    const int64_t all = limit[device] ? limit[device] : int64_t(8) << 30;
    return {static_cast<size_t>(std::max<int64_t>(0, all - used[device])), static_cast<size_t>(all)};
  }
};

DeviceMemory& device_memory() {
  static auto* one = new DeviceMemory;
  return *one;
}

void free_block(void* context) {
  if (state().bad_fork) {
    return;  // it is the parent's, and so are the streams
  }
  auto* block = static_cast<Block*>(context);
  auto& memory = device_memory();
  auto streams = block->others;
  const bool at_once = streams.empty();  // its own stream may use it again at once, as that is ordered
  if (at_once) {
    memory.give_back(block->device, block->bytes);
  }
  streams.insert(block->stream);
  // the last of these streams that passes this instant poisons it
  std::shared_ptr<Block> shared(block, [at_once](Block* last) {
    std::memset(last->memory, POISON, last->bytes);
    if (!at_once) {
      device_memory().give_back(last->device, last->bytes);
    }
    quarantine().add(last->memory, last->bytes);
    delete last;
  });
  for (auto stream : streams) {
    queue(block->device, stream).push_freed(OTHER, [shared] {});
  }
}

c10::DataPtr DeviceMemory::allocate(size_t bytes) {
  const auto device = current_device;
  use(device);
  if (!bytes) {
    return {nullptr, Device(SIM, device)};
  }
  if (!take(device, bytes)) {
    wait_device(device);
    TORCH_CHECK_WITH(OutOfMemoryError, take(device, bytes),
                     "simulated accelerator out of memory. Tried to allocate ", bytes, " bytes");
  }
  auto* block = new Block{memory_of(bytes), bytes, device, current_stream[device], {}};
  return {block->memory, block, &free_block, Device(SIM, device)};
}

c10::DeleterFnPtr DeviceMemory::raw_deleter() const {
  return nullptr;  // the context is not the memory
}

void Guard::recordDataPtrOnStream(const c10::DataPtr& pointer, const Stream& stream) const {
  device_memory().recordStream(pointer, stream);
}

// Page-locked memory. A block that is freed while copies from it are under way is filled with poison after them.
struct PinnedBlock {
  char* memory;
  size_t bytes;
  int64_t under_way = 0;
  bool freed = false;
};

// Source: ATen/core/CachingHostAllocator.h
struct PinnedMemory final : at::HostAllocator {
  std::mutex mutex;
  std::map<const char*, PinnedBlock*> blocks;  // by first byte

  PinnedBlock* find(const void* data) {
    auto next = blocks.upper_bound(static_cast<const char*>(data));
    if (next == blocks.begin()) {
      return nullptr;
    }
    auto* block = std::prev(next)->second;
    return static_cast<const char*>(data) < block->memory + block->bytes ? block : nullptr;
  }
  bool pinned(const void* data) {
    std::lock_guard<std::mutex> lock(mutex);
    return find(data) != nullptr;
  }
  PinnedBlock* begin_copy(const void* data) {
    std::lock_guard<std::mutex> lock(mutex);
    auto* block = find(data);
    if (block) {
      ++block->under_way;
    }
    return block;
  }
  void end_copy(PinnedBlock* block) {
    std::lock_guard<std::mutex> lock(mutex);
    --block->under_way;
    retire(block);
  }
  void retire(PinnedBlock* block) {
    if (block->freed && !block->under_way) {
      blocks.erase(block->memory);
      std::memset(block->memory, POISON, block->bytes);
      quarantine().add(block->memory, block->bytes);
      delete block;
    }
  }
  c10::DataPtr allocate(size_t bytes) override;
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
  bool record_event(void* data, void*, Stream stream) override {
    if (auto* block = begin_copy(data)) {
      queue(stream).push(OTHER, [this, block] { end_copy(block); });
      return true;
    }
    return false;
  }
  void empty_cache() override {}
  at::HostStats get_stats() override {
    return {};
  }
  void reset_accumulated_stats() override {}
  void reset_peak_stats() override {}
};

PinnedMemory& pinned_memory() {
  static auto* one = new PinnedMemory;
  return *one;
}

void free_pinned(void* context) {
  if (state().bad_fork) {
    return;
  }
  auto& all = pinned_memory();
  std::lock_guard<std::mutex> lock(all.mutex);
  auto* block = static_cast<PinnedBlock*>(context);
  block->freed = true;
  all.retire(block);
}

c10::DataPtr PinnedMemory::allocate(size_t bytes) {
  use(current_device);  // on CUDA too, page-locking memory creates the current device's context
  auto* block = new PinnedBlock{static_cast<char*>(memory_of(std::max<size_t>(bytes, 1))), std::max<size_t>(bytes, 1)};
  std::lock_guard<std::mutex> lock(mutex);
  blocks[block->memory] = block;
  return {block->memory, block, &free_pinned, c10::DeviceType::CPU};
}

// ---------------------------------------------------------------------------------------------------------
// random numbers: a state on the host, of which each kernel takes a seed, so that reading it waits for nothing
// ---------------------------------------------------------------------------------------------------------

struct Generator final : c10::GeneratorImpl {
  explicit Generator(DeviceIndex device)
      : GeneratorImpl(Device(SIM, device), c10::DispatchKeySet(DispatchKey::PrivateUse1)) {}

  void set_current_seed(uint64_t seed) override {
    seed_ = seed;
    offset_ = 0;
  }
  void set_offset(uint64_t offset) override {
    offset_ = offset;
  }
  uint64_t get_offset() const override {
    return offset_;
  }
  uint64_t current_seed() const override {
    return seed_;
  }
  uint64_t seed() override {
    set_current_seed(c10::detail::getNonDeterministicRandom());
    return seed_;
  }
  void set_state(const c10::TensorImpl& given) override {
    TORCH_CHECK(given.numel() == 16 && given.dtype() == c10::kByte && given.device().is_cpu(), "wrong random state");
    std::memcpy(&seed_, given.data(), 8);
    std::memcpy(&offset_, static_cast<const char*>(given.data()) + 8, 8);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    auto made = at::empty({16}, at::kByte);
    std::memcpy(made.data_ptr(), &seed_, 8);
    std::memcpy(static_cast<char*>(made.data_ptr()) + 8, &offset_, 8);
    return made.getIntrusivePtr();
  }
  at::Generator next() {  // for one kernel
    std::lock_guard<std::mutex> lock(mutex_);
    return at::make_generator<at::CPUGeneratorImpl>(seed_ * 0x9E3779B97F4A7C15ULL + offset_++);
  }

 private:
  Generator* clone_impl() const override {
    auto* made = new Generator(device_.index());
    made->seed_ = seed_;
    made->offset_ = offset_;
    return made;
  }
  uint64_t seed_ = c10::default_rng_seed_val, offset_ = 0;
};

const at::Generator& default_generator(DeviceIndex device) {
  static auto* all = new std::vector<at::Generator>{at::make_generator<Generator>(0), at::make_generator<Generator>(1)};
  return (*all)[device < 0 ? current_device : device];
}

// Source: ATen/detail/PrivateUse1HooksInterface.h
struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override {
    return true;
  }
  bool isAvailable() const override {
    return true;
  }
  bool hasPrimaryContext(DeviceIndex device) const override {
    return state().used[device];
  }
  DeviceIndex deviceCount() const override {
    return DEVICES;
  }
  void setCurrentDevice(DeviceIndex device) const override {
    Guard().setDevice(Device(SIM, device));
  }
  DeviceIndex getCurrentDevice() const override {
    return current_device;
  }
  DeviceIndex exchangeDevice(DeviceIndex device) const override {
    return Guard().exchangeDevice(Device(SIM, device)).index();
  }
  DeviceIndex maybeExchangeDevice(DeviceIndex device) const override {
    return exchangeDevice(device);
  }
  const at::Generator& getDefaultGenerator(DeviceIndex device) const override {
    return default_generator(device);
  }
  at::Generator getNewGenerator(DeviceIndex device) const override {
    return at::make_generator<Generator>(device < 0 ? current_device : device);
  }
  bool isPinnedPtr(const void* data) const override {
    return pinned_memory().pinned(data);
  }
  at::Allocator* getPinnedMemoryAllocator() const override {
    return &pinned_memory();
  }
  Device getDeviceFromPtr(void*) const override {
    return Device(SIM, current_device);
  }
};

// ---------------------------------------------------------------------------------------------------------
// operators
// ---------------------------------------------------------------------------------------------------------

bool on_device(const Tensor& tensor) {
  return tensor.defined() && tensor.device().type() == SIM;
}

// The same memory, for a CPU kernel.
Tensor on_host(const Tensor& tensor) {
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), tensor.options().device(at::kCPU));
}

struct Shape {
  bool defined;
  std::vector<int64_t> sizes, strides;
  at::ScalarType dtype;

  static Shape of(const Tensor& tensor) {
    if (!tensor.defined()) {
      return {false, {}, {}, at::kFloat};
    }
    return {true, tensor.sizes().vec(), tensor.strides().vec(), tensor.scalar_type()};
  }
  Tensor empty(Device device) const {
    return defined ? at::empty_strided(sizes, strides, at::TensorOptions(dtype).device(device)) : Tensor();
  }
  Tensor zeros() const {
    int64_t elements = 1;
    for (size_t i = 0; i < sizes.size(); ++i) {
      elements = sizes[i] ? elements + (sizes[i] - 1) * strides[i] : elements;
    }
    return at::zeros({elements}, at::TensorOptions(dtype)).as_strided(sizes, strides);
  }
};

// Calls `change` for each tensor among the arguments.
template <typename F>
void for_tensors(IValue& value, const F& change) {
  if (value.isTensor()) {
    value = IValue(change(value.toTensor()));
  } else if (value.isTensorList()) {
    c10::List<Tensor> changed;
    for (const Tensor& each : value.toTensorVector()) {
      changed.push_back(change(each));
    }
    value = changed;
  } else if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> changed;
    for (const std::optional<Tensor>& each : value.toOptionalTensorVector()) {
      changed.push_back(each ? std::optional<Tensor>(change(*each)) : std::nullopt);
    }
    value = changed;
  }
}

void describe(std::ostream& out, const Tensor& tensor) {
  if (!tensor.defined()) {
    out << "-;";
    return;
  }
  out << 'T' << int(tensor.scalar_type()) << tensor.sizes() << tensor.strides() << ';';
}

// What an operator's outputs look like: found by running it once on zeros, for each kind of arguments.
const std::vector<std::vector<Shape>>& outputs_of(const c10::OperatorHandle& op, const std::vector<IValue>& args) {
  static auto* known = new std::unordered_map<std::string, std::vector<std::vector<Shape>>>;
  static auto* mutex = new std::mutex;
  std::ostringstream key;
  key << op.operator_name() << ':';
  for (IValue value : args) {
    if (value.isTensor() || value.isTensorList() || value.isOptionalTensorList()) {
      for_tensors(value, [&](const Tensor& each) {
        describe(key, each);
        return each;
      });
      key << '|';
    } else if (!value.isGenerator()) {
      key << value << '|';
    }
  }
  {
    std::lock_guard<std::mutex> lock(*mutex);
    if (auto found = known->find(key.str()); found != known->end()) {
      return found->second;
    }
  }
  Stack stack;
  for (IValue value : args) {
    for_tensors(value, [](const Tensor& each) { return each.defined() ? Shape::of(each).zeros() : each; });
    stack.push_back(std::move(value));
  }
  op.callBoxed(&stack);
  std::vector<std::vector<Shape>> found;
  for (IValue& value : stack) {
    auto& shapes = found.emplace_back();
    for_tensors(value, [&](const Tensor& each) {
      shapes.push_back(Shape::of(each));
      return each;
    });
  }
  std::lock_guard<std::mutex> lock(*mutex);
  return known->emplace(key.str(), std::move(found)).first->second;
}

// Operators whose result, or its shape, depends on values: the host waits for the stream.
bool depends_on_values(const std::string& name) {
  static const std::set<std::string> names = {
      "aten::nonzero", "aten::bincount", "aten::masked_select", "aten::_unique", "aten::_unique2", "aten::unique_dim",
      "aten::unique_consecutive", "aten::equal", "aten::repeat_interleave", "aten::histc", "aten::is_nonzero"};
  return names.count(name) > 0;
}

// Runs `op`, a CPU kernel, on the device: the operator `shown` was called with the arguments on the stack.
void launch(const c10::OperatorHandle& shown, const c10::OperatorHandle& op, Stack* stack) {
  const auto& schema = shown.schema();
  const auto& name = shown.operator_name().name;
  const auto count = op.schema().arguments().size();
  std::vector<IValue> given(stack->end() - count, stack->end());
  torch::jit::drop(*stack, count);

  std::optional<Device> device;
  for (IValue value : given) {
    for_tensors(value, [&](const Tensor& each) {
      if (on_device(each)) {
        TORCH_CHECK(!device || *device == each.device(), name, ": tensors are on ", *device, " and ", each.device());
        device = each.device();
      }
      return each;
    });
  }
  TORCH_CHECK(device, name, ": the simulated accelerator does not know this operator");
  c10::DeviceGuard guard(*device);
  c10::impl::ExcludeDispatchKeyGuard plain(c10::autograd_dispatch_keyset_with_ADInplaceOrView);

  auto args = given;
  std::vector<size_t> unshaped;  // outputs that the kernel is to give their size
  for (size_t i = 0; i < args.size(); ++i) {
    const auto* alias = op.schema().arguments()[i].alias_info();
    if (op.schema().is_mutable() && alias != nullptr && alias->isWrite() && args[i].isTensor() &&
        op.schema().arguments()[i].kwarg_only() && !args[i].toTensor().numel()) {
      unshaped.push_back(i);
    }
  }
  for (size_t i = 0; i < args.size(); ++i) {
    if (args[i].isGenerator() || (args[i].isNone() && op.schema().arguments()[i].name() == "generator")) {
      const auto& one = args[i].isGenerator() ? args[i].toGenerator() : default_generator(device->index());
      args[i] = static_cast<Generator*>(one.unsafeGetGeneratorImpl())->next();
      continue;
    }
    if (args[i].isDevice()) {
      args[i] = Device(c10::DeviceType::CPU);
      continue;
    }
    for_tensors(args[i], [&](const Tensor& each) {
      if (on_device(each)) {
        return on_host(each);
      }
      if (!each.defined()) {
        return each;
      }
      if (each.dim()) {
        TORCH_CHECK(name.rfind("aten::index", 0) == 0, name, ": a tensor is on the host, another one on ", *device);
        count_wait(name);
        current(device->index()).wait();
      }
      auto copied = each.clone();  // its value now
      copied.unsafeGetTensorImpl()->set_wrapped_number(each.unsafeGetTensorImpl()->is_wrapped_number());
      return copied;
    });
  }
  if (!unshaped.empty()) {
    const auto& shapes = outputs_of(op, args);
    for (size_t i = 0; i < schema.returns().size(); ++i) {
      for (size_t j : unshaped) {
        if (schema.returns()[i].alias_info()->beforeSets() == schema.arguments()[j].alias_info()->beforeSets()) {
          const auto& out = given[j].toTensor();
          out.resize_(shapes[i][0].sizes);
          args[j] = on_host(out);
        }
      }
    }
  }
  ++state().launches;

  if (depends_on_values(name)) {
    wait_for(current(device->index()), name);
    Stack now(args.begin(), args.end());
    op.callBoxed(&now);
    for (IValue& value : now) {
      for_tensors(value, [&](const Tensor& each) {
        if (!each.defined()) {
          return each;
        }
        auto made = at::empty_strided(each.sizes(), each.strides(), each.options().device(*device));
        on_host(made).copy_(each);
        return made;
      });
      stack->push_back(std::move(value));
    }
    return;
  }

  // results: arguments that were written to, or new tensors
  std::vector<IValue> results;
  std::vector<std::vector<Tensor>> made(schema.returns().size());
  bool any = false;
  for (size_t i = 0; i < schema.returns().size(); ++i) {
    const auto* alias = schema.returns()[i].alias_info();
    if (alias == nullptr) {
      any = true;
      results.emplace_back();
      continue;
    }
    TORCH_CHECK(alias->isWrite() && name != "aten::set_", name, ": the simulated accelerator does not know this view");
    for (size_t j = 0; j < schema.arguments().size(); ++j) {
      const auto* other = schema.arguments()[j].alias_info();
      if (other != nullptr && other->beforeSets() == alias->beforeSets()) {
        results.push_back(given[j]);
        break;
      }
    }
  }
  if (any) {
    const auto& shapes = outputs_of(op, args);
    for (size_t i = 0; i < results.size(); ++i) {
      if (schema.returns()[i].alias_info() != nullptr) {
        continue;
      }
      c10::List<Tensor> list;
      for (const Shape& shape : shapes[i]) {
        auto fresh = shape.empty(*device);
        list.push_back(fresh);
        made[i].push_back(fresh.defined() ? on_host(fresh) : fresh);
      }
      results[i] = schema.returns()[i].type()->kind() == c10::TypeKind::ListType ? IValue(list) : IValue(list.get(0));
    }
  }
  current(device->index()).push(KERNEL, [op, args = std::move(args), made = std::move(made)] {
    Stack arguments(args.begin(), args.end());
    op.callBoxed(&arguments);
    for (size_t i = 0; i < made.size(); ++i) {
      size_t at = 0;
      if (!made[i].empty()) {
        for_tensors(arguments[i], [&](const Tensor& each) {
          if (made[i][at].defined()) {
            made[i][at].copy_(each);
          }
          ++at;
          return each;
        });
      }
    }
  });
  for (IValue& value : results) {
    stack->push_back(std::move(value));
  }
}

void fallback(const c10::OperatorHandle& op, Stack* stack) {
  launch(op, op, stack);
}

c10::OperatorHandle find(const char* name, const char* overload = "") {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, overload);
}

void convolution(const c10::OperatorHandle& op, Stack* stack) {
  static auto real = find("aten::convolution");
  launch(op, real, stack);
}

void convolution_backward(const c10::OperatorHandle& op, Stack* stack) {
  static auto real = find("aten::convolution_backward");
  const auto weight = (*stack)[stack->size() - 8].toTensor();
  const bool transposed = (*stack)[stack->size() - 4].toBool();
  const int64_t groups = (*stack)[stack->size() - 2].toInt();
  const int64_t outputs = transposed ? weight.size(1) * groups : weight.size(0);
  stack->insert(stack->end() - 7, IValue(std::vector<int64_t>{outputs}));  // the size of the bias
  launch(op, real, stack);
}

Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &device_memory(),
                                   c10::DispatchKeySet(DispatchKey::PrivateUse1), at::dtype_or_default(dtype), format);
}

Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<Device> device, std::optional<bool>) {
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride),
                                           &device_memory(), c10::DispatchKeySet(DispatchKey::PrivateUse1),
                                           at::dtype_or_default(dtype));
}

Tensor viewed(const Tensor& self, at::IntArrayRef size, at::IntArrayRef stride, int64_t offset) {
  auto made = at::detail::make_tensor<at::TensorImpl>(c10::TensorImpl::VIEW, c10::Storage(self.storage()),
                                                      self.key_set(), self.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return made;
}

Tensor as_strided(const Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                  std::optional<c10::SymInt> offset) {
  return viewed(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride),
                offset ? offset->guard_int(__FILE__, __LINE__) : self.storage_offset());
}

Tensor reshape_alias(const Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  return as_strided(self, size, stride, std::nullopt);
}

Tensor view(const Tensor& self, c10::SymIntArrayRef size) {
  const auto whole = at::infer_size(C10_AS_INTARRAYREF_SLOW(size), self.numel());
  const auto stride = at::detail::computeStride(self.sizes(), self.strides(), whole);
  TORCH_CHECK(stride, "view size is not compatible with input tensor's size and stride. Use .reshape(...) instead.");
  return viewed(self, whole, *stride, self.storage_offset());
}

const Tensor& resize_(const Tensor& self, c10::SymIntArrayRef size, std::optional<at::MemoryFormat>) {
  const auto sizes = C10_AS_INTARRAYREF_SLOW(size);
  if (self.sizes() == sizes) {
    return self;
  }
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_sizes_contiguous(sizes);
  auto* storage = impl->unsafe_storage().unsafeGetStorageImpl();
  const size_t needed = (impl->storage_offset() + impl->numel()) * self.itemsize();
  if (storage->nbytes() < needed) {
    c10::DeviceGuard guard(self.device());
    auto fresh = device_memory().allocate(needed);
    auto *to = fresh.get(), *from = storage->mutable_data();
    const auto bytes = storage->nbytes();
    current(self.device().index()).push(COPY, [=] {
      if (bytes) {
        std::memcpy(to, from, bytes);
      }
    });
    storage->set_data_ptr_noswap(std::move(fresh));
    storage->set_nbytes(needed);
  }
  return self;
}

Tensor& set_storage(Tensor& self, c10::Storage storage, c10::SymInt offset, c10::SymIntArrayRef size,
                    c10::SymIntArrayRef stride) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(storage));
  impl->set_sizes_and_strides(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride),
                              offset.guard_int(__FILE__, __LINE__));
  return self;
}

Tensor& set_whole_storage(Tensor& self, c10::Storage storage) {
  const auto elements = static_cast<int64_t>(storage.nbytes() / self.itemsize());
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(storage));
  self.unsafeGetTensorImpl()->set_storage_offset(0);
  self.unsafeGetTensorImpl()->set_sizes_contiguous({elements});
  return self;
}

Tensor copy_from(const Tensor& self, const Tensor& to, bool non_blocking) {
  const bool from_device = on_device(self), to_device = on_device(to);
  const auto device = from_device ? self.device() : to.device();
  c10::DeviceGuard guard(device);
  auto& stream = current(device.index());
  ++state().launches;
  auto source = from_device ? on_host(self) : self, target = to_device ? on_host(to) : to;
  c10::impl::ExcludeDispatchKeyGuard plain(c10::autograd_dispatch_keyset_with_ADInplaceOrView);
  if (from_device && to_device) {
    if (self.device() == to.device()) {
      stream.push(KERNEL, [source, target] { target.copy_(source); });
      return to;
    }
    // between devices: after all work queued on both so far, and before any that follows
    Guard events;
    const auto here = events.getStream(self.device()), there = events.getStream(to.device());
    void *ready = nullptr, *done = nullptr;
    events.record(&ready, there, to.device().index(), c10::EventFlag::PYTORCH_DEFAULT);
    events.block(ready, here);
    stream.push(COPY, [source, target] { target.copy_(source); });
    events.record(&done, here, self.device().index(), c10::EventFlag::PYTORCH_DEFAULT);
    events.block(done, there);
    events.destroyEvent(ready, 0);
    events.destroyEvent(done, 0);
    return to;
  }
  const auto* host = from_device ? to.data_ptr() : self.data_ptr();
  auto* block = pinned_memory().begin_copy(host);
  // nothing keeps the tensor on the host, as on a GPU: only a block of page-locked memory waits for its copies
  source = from_device ? source : at::from_blob(self.data_ptr(), self.sizes(), self.strides(), self.options());
  target = to_device ? target : at::from_blob(to.data_ptr(), to.sizes(), to.strides(), to.options());
  stream.push(COPY, [source, target, block] {
    target.copy_(source);
    if (block) {
      pinned_memory().end_copy(block);
    }
  });
  if (!non_blocking || !block) {
    wait_for(stream, non_blocking ? "copy of pageable memory" : "copy");
  }
  return to;
}

Tensor copy_from_and_resize(const Tensor& self, const Tensor& to) {
  to.resize_(self.sizes());
  return copy_from(self, to, false);
}

at::Scalar local_scalar(const Tensor& self) {
  wait_for(current(self.device().index()), "aten::_local_scalar_dense");
  return at::_local_scalar_dense(on_host(self));
}

void record_stream(Tensor& self, Stream stream) {
  device_memory().recordStream(self.storage().data_ptr(), stream);
}

std::tuple<Tensor, Tensor> native_dropout(const Tensor& input, double p, std::optional<bool> train) {
  if (train && !*train) {
    return {input.clone(), at::empty_like(input, at::kBool).fill_(true)};
  }
  auto mask = at::empty_like(input, at::kBool).bernoulli_(1 - p);
  return {input.mul(mask).mul(p < 1 ? 1 / (1 - p) : 0), mask};
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("as_strided", &as_strided);
  m.impl("view", &view);
  m.impl("_reshape_alias", &reshape_alias);
  m.impl("resize_", &resize_);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("set_.source_Storage", &set_whole_storage);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &local_scalar);
  m.impl("record_stream", &record_stream);
  m.impl("native_dropout", &native_dropout);
  for (const char* name : {"mse_loss", "smooth_l1_loss"}) {  // whose out= form on the CPU resizes its output twice
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&fallback>());
  }
  m.impl("convolution_overrideable", torch::CppFunction::makeFromBoxedFunction<&convolution>());
  m.impl("convolution_backward_overrideable", torch::CppFunction::makeFromBoxedFunction<&convolution_backward>());
}

// ---------------------------------------------------------------------------------------------------------
// autocast: as on CUDA, products in the lower precision, losses in float32
// ---------------------------------------------------------------------------------------------------------

template <bool lower>
void cast_arguments(const c10::OperatorHandle& op, Stack* stack) {
  c10::impl::ExcludeDispatchKeyGuard guard(DispatchKey::AutocastPrivateUse1);
  const auto dtype = lower ? at::autocast::get_autocast_dtype(SIM) : at::kFloat;
  const auto count = op.schema().arguments().size();
  for (auto value = stack->end() - count; value != stack->end(); ++value) {
    for_tensors(*value, [&](const Tensor& each) {
      return each.defined() ? at::autocast::cached_cast(dtype, each, SIM) : each;
    });
  }
  op.callBoxed(stack);
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  for (const char* name : {"linear", "matmul", "mm", "bmm", "addmm", "conv1d", "conv2d", "conv3d"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&cast_arguments<true>>());
  }
  for (const char* name : {"mse_loss", "l1_loss", "nll_loss", "cross_entropy_loss", "log_softmax.int", "softmax.int",
                           "layer_norm", "group_norm"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&cast_arguments<false>>());
  }
}

// ---------------------------------------------------------------------------------------------------------
// for the device's Python module, and for tests
// ---------------------------------------------------------------------------------------------------------

void sleep_on_device(int64_t device, double seconds) {
  current(static_cast<DeviceIndex>(device)).push(KERNEL, [seconds] {
    std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
  });
}

std::vector<std::string> wait_names() {
  std::lock_guard<std::mutex> lock(state().mutex);
  std::vector<std::string> names;
  for (const auto& [name, count] : state().waits) {
    names.insert(names.end(), count, name);
  }
  return names;
}

Tensor trace() {  // (tasks, 5) int64: kind, device, stream, begin and end in ns
  std::lock_guard<std::mutex> lock(state().mutex);
  auto made = at::empty({static_cast<int64_t>(state().trace.size()), 5}, at::kLong);
  static_assert(sizeof(Ran) == 5 * sizeof(int64_t));
  std::memcpy(made.data_ptr(), state().trace.data(), state().trace.size() * sizeof(Ran));
  return made;
}

TORCH_LIBRARY(feedrate_sim, m) {
  m.def("sleep", &sleep_on_device);
  m.def("waits", &wait_names);
  m.def("launches", [] { return state().launches.load(); });
  m.def("trace", &trace);
  m.def("reset(bool tracing) -> ()", [](bool tracing) {
    std::lock_guard<std::mutex> lock(state().mutex);
    state().waits.clear();
    state().trace.clear();
    state().error.clear();
    state().launches = 0;
    state().tracing = tracing;
  });
  m.def("delay(float kernel_s, float copy_s) -> ()", [](double kernel_s, double copy_s) {
    state().delay_ns[KERNEL] = static_cast<int64_t>(1e9 * kernel_s);
    state().delay_ns[COPY] = static_cast<int64_t>(1e9 * copy_s);
  });
  m.def("limit_memory(int device, int bytes) -> ()", [](int64_t device, int64_t bytes) {
    std::lock_guard<std::mutex> lock(device_memory().mutex);
    device_memory().limit[device] = bytes;
  });
  m.def("used(int device) -> bool", [](int64_t device) { return state().used[device].load(); });
  m.def("forget_use(int device) -> ()", [](int64_t device) { state().used[device] = false; });
  m.def("in_bad_fork() -> bool", [] { return state().bad_fork.load(); });
  m.def("seed(int device, int seed) -> ()", [](int64_t device, int64_t seed) {
    auto generator = default_generator(static_cast<DeviceIndex>(device));
    generator.set_current_seed(static_cast<uint64_t>(seed));
  });
  m.def("rng_state(int device) -> Tensor",
        [](int64_t device) { return default_generator(static_cast<DeviceIndex>(device)).get_state(); });
  m.def("set_rng_state(int device, Tensor state) -> ()", [](int64_t device, const Tensor& given) {
    auto generator = default_generator(static_cast<DeviceIndex>(device));
    generator.set_state(given);
  });
}

const bool registered = [] {
  c10::impl::registerDeviceGuard(SIM, new Guard);
  c10::SetAllocator(SIM, &device_memory());
  at::setHostAllocator(SIM, &pinned_memory());
  at::RegisterPrivateUse1HooksInterface(new Hooks);
  pthread_atfork(nullptr, nullptr, [] {
    if (any_used()) {
      state().bad_fork = true;
    }
  });
  return true;
}();

}  // namespace
