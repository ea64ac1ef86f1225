#include "mapping.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <mutex>
#include <system_error>

namespace rushlight {

// Ranges are never freed, since the handler may read them at any time; those of closed mappings are used again.
struct MappedRange {
  std::atomic<uintptr_t> begin = 0, end = 0;
  std::atomic<bool> failed = false;
  MappedRange* next = nullptr;
};

namespace {

std::mutex mutex;  // of changes to the list and of the handler's installation
std::atomic<MappedRange*> ranges = nullptr;
struct sigaction previous;  // the handler before this one

void map_zeros(uintptr_t begin, uintptr_t end) {
  mmap(reinterpret_cast<void*>(begin), end - begin, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}

// A SIGBUS that does not come from a mapping goes to the previous handler.
void pass_on(int signal, siginfo_t* info, void* context) {
  if ((previous.sa_flags & SA_SIGINFO) != 0) return previous.sa_sigaction(signal, info, context);
  const bool is_default = previous.sa_handler == SIG_DFL || previous.sa_handler == SIG_IGN;
  if (!is_default) return previous.sa_handler(signal);
  if (info->si_code <= 0 && previous.sa_handler == SIG_IGN) return;
  // The instruction is repeated on return, and a signal that was sent is sent again.
  struct sigaction standard = {};
  standard.sa_handler = SIG_DFL;
  sigaction(signal, &standard, nullptr);
  if (info->si_code <= 0) raise(signal);
}

void handle(int signal, siginfo_t* info, void* context) {
  if (info->si_code > 0) {
    const auto at = reinterpret_cast<uintptr_t>(info->si_addr);
    for (MappedRange* range = ranges.load(); range != nullptr; range = range->next) {
      const uintptr_t begin = range->begin.load(), end = range->end.load();
      if (at < begin || at >= end) continue;
      const int saved = errno;
      range->failed.store(true);
      map_zeros(begin, end);
      errno = saved;
      return;
    }
  }
#if defined(SI_TKILL)
  // Python's faulthandler, if it was enabled after this handler, prints its report, installs this handler again and raises
  // the signal. On return, the instruction is repeated, and this handler called with its address.
  if (info->si_code == SI_TKILL && info->si_pid == getpid()) return;
#endif
  pass_on(signal, info, context);
}

}  // namespace

// Again where something has removed the handler, as faulthandler.disable() does.
void Mapping::guard() {
  static bool installed = false;
  const std::lock_guard lock(mutex);
  struct sigaction now;
  if (sigaction(SIGBUS, nullptr, &now) != 0) return;
  const bool has_none = (now.sa_flags & SA_SIGINFO) == 0 && now.sa_handler == SIG_DFL;
  if (installed && !has_none) return;
  struct sigaction ours = {};
  ours.sa_sigaction = handle;
  ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  sigemptyset(&ours.sa_mask);
  installed = sigaction(SIGBUS, &ours, &previous) == 0;
}

Mapping::Mapping(int fd, size_t bytes) : bytes_(bytes) {
  const auto fail = [](const char* what) { throw std::system_error(errno, std::generic_category(), what); };
  fd_ = fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (fd_ < 0) fail("dup");
  void* mapped = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, 0);
  if (mapped == MAP_FAILED) {
    const int error = errno;
    close(fd_);
    errno = error;
    fail("mmap");
  }
  data_ = static_cast<uint8_t*>(mapped);
  guard();

  const std::lock_guard lock(mutex);
  for (range_ = ranges.load(); range_ != nullptr && range_->end.load() != 0; range_ = range_->next) {
  }
  if (range_ == nullptr) {
    range_ = new MappedRange;
    range_->next = ranges.load();
    ranges.store(range_);
  }
  range_->failed.store(false);
  range_->begin.store(reinterpret_cast<uintptr_t>(mapped));
  range_->end.store(reinterpret_cast<uintptr_t>(mapped) + bytes);
}

Mapping::~Mapping() {
  {
    const std::lock_guard lock(mutex);
    range_->end.store(0);
  }
  munmap(data_, bytes_);
  close(fd_);
}

bool Mapping::failed() const { return range_->failed.load(); }

}  // namespace rushlight
