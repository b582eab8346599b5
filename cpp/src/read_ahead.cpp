#include "lemur/read_ahead.hpp"

#include <algorithm>
#include <cerrno>

#if !defined(_WIN32)
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>
#endif

namespace lemur {
namespace {

constexpr std::int64_t kAtOnce = 1 << 23;  // bytes that are asked for while those before are read

std::atomic<ReadAhead> how_to_read{ReadAhead::kAsNeeded};

#if defined(_WIN32)
constexpr std::uintptr_t page_bytes() { return 4096; }
void ask_for(std::uintptr_t, std::uintptr_t) {}
std::int64_t num_disk_reads() { return 0; }
#else
std::uintptr_t page_bytes() {
  static const auto size = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  return size;
}

void ask_for(std::uintptr_t begin, std::uintptr_t end) {
  madvise(reinterpret_cast<void*>(begin), static_cast<std::size_t>(end - begin), MADV_WILLNEED);
}

// Of this thread, where the system tells; 0.15 us. Blocks too, since pages that were asked for in time are no faults.
std::int64_t num_disk_reads() {
#if defined(RUSAGE_THREAD)
  constexpr int whose = RUSAGE_THREAD;
#else
  constexpr int whose = RUSAGE_SELF;
#endif
  rusage used{};
  if (getrusage(whose, &used) != 0) return 0;
  return static_cast<std::int64_t>(used.ru_majflt) + static_cast<std::int64_t>(used.ru_inblock);
}
#endif

}  // namespace

void set_read_ahead(ReadAhead how) { how_to_read = how; }

void PageRanges::add(const void* begin, std::int64_t num_bytes) {
  if (begin == nullptr || num_bytes <= 0) return;
  const auto first = reinterpret_cast<std::uintptr_t>(begin), page = page_bytes();
  const std::uintptr_t end = first + static_cast<std::uintptr_t>(num_bytes);
  ranges_.emplace_back(first / page * page, (end + page - 1) / page * page);
}

void PageRanges::ask() {
  std::sort(ranges_.begin(), ranges_.end());
  // Where memory is short the system leaves out pages that it has no room for at once; the second time it has made
  // room.
  for (int time = 0; time < 2; ++time)
    for (std::size_t i = 0; i < ranges_.size();) {
      const std::uintptr_t begin = ranges_[i].first;
      std::uintptr_t end = ranges_[i].second;
      for (++i; i < ranges_.size() && ranges_[i].first <= end; ++i) end = std::max(end, ranges_[i].second);
      ask_for(begin, end);
    }
  ranges_.clear();
}

DiskReads::Watch::Watch(const DiskReads& reads) : reads_(reads), before_(num_disk_reads()) {}

DiskReads::Watch::~Watch() {
  if (num_disk_reads() > before_)
    reads_.left_ = kRemembered;
  else if (const int left = reads_.left_; left > 0)
    reads_.left_ = left - 1;
}

bool DiskReads::are_likely() const {
  const ReadAhead how = how_to_read;
  return how == ReadAhead::kAlways || (how == ReadAhead::kAsNeeded && left_ > 0);
}

void read_pages(const void* begin, std::int64_t num_bytes) {
  const auto* bytes = static_cast<const volatile char*>(begin);
  const auto page = static_cast<std::int64_t>(page_bytes());
  PageRanges next;
  next.add(begin, std::min(kAtOnce, num_bytes));
  next.ask();
  for (std::int64_t block = 0; block < num_bytes; block += kAtOnce) {
    const std::int64_t end = std::min(num_bytes, block + kAtOnce);
    next.add(static_cast<const char*>(begin) + end, std::min(kAtOnce, num_bytes - end));
    next.ask();
    for (std::int64_t i = block; i < end; i += page) static_cast<void>(bytes[i]);
  }
  if (num_bytes > 0) static_cast<void>(bytes[num_bytes - 1]);  // of a page that the steps pass over
}

int pin_pages(const void* begin, std::int64_t num_bytes) {
#if defined(_WIN32)
  static_cast<void>(begin);
  static_cast<void>(num_bytes);
  return ENOSYS;
#else
  read_pages(begin, num_bytes);  // quicker than what mlock reads, page by page
  return num_bytes <= 0 || mlock(begin, static_cast<std::size_t>(num_bytes)) == 0 ? 0 : errno;
#endif
}

}  // namespace lemur
