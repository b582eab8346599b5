// Pages of mapped files, asked for before they are read.
//
// A page that is not in memory is read from the disk when it is first touched, and the thread waits: for one page after
// the other, although a disk reads many at once. So a search that had to wait asks for all that it will read at once.
// That is advice to the system: what is read, and so every hit, is the same without it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace lemur {

enum class ReadAhead { kAsNeeded, kAlways, kNever };

// For all searches from now on. Searches ask as needed, unless a test or a benchmark says otherwise.
void set_read_ahead(ReadAhead how);

// Memory that is about to be read, whether mapped or not.
class PageRanges {
 public:
  void add(const void* begin, std::int64_t num_bytes);
  // Asks for the pages of all ranges, and forgets these. Never fails: what is not mapped is left out.
  void ask();

 private:
  using Range = std::pair<std::uintptr_t, std::uintptr_t>;  // of addresses, whole pages
  std::vector<Range> ranges_;
};

// Whether reads of some memory go to the disk, as recent ones show. Any number of threads may use it.
class DiskReads {
 public:
  // Notes whether this thread reads from the disk while it lives.
  class Watch {
   public:
    explicit Watch(const DiskReads& reads);
    ~Watch();
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;

   private:
    const DiskReads& reads_;
    const std::int64_t before_;
  };

  // Whether to ask for pages: in the first search, and in kRemembered after each that read from the disk.
  bool are_likely() const;

 private:
  static constexpr int kRemembered = 32;
  mutable std::atomic<int> left_{1};
};

// Reads all pages of some memory now, from the disk where they are not in memory.
void read_pages(const void* begin, std::int64_t num_bytes);

// The same, and they stay in memory as long as they are mapped. Gives 0, or the error number where the system refuses.
int pin_pages(const void* begin, std::int64_t num_bytes);

}  // namespace lemur
