#include "lemur/cpu.hpp"

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>

#if defined(LEMUR_ANN_X86) && (defined(__x86_64__) || defined(_M_X64))
#define LEMUR_ANN_DETECT_X86
#if defined(_MSC_VER)
#include <immintrin.h>
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(LEMUR_ANN_ARM64) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace lemur {
namespace {

#ifdef LEMUR_ANN_DETECT_X86

struct Registers {
  std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(std::uint32_t leaf) {
  Registers r;
#if defined(_MSC_VER)
  int out[4];
  __cpuid(out, 0);
  if (static_cast<std::uint32_t>(out[0]) < leaf) return r;
  __cpuidex(out, static_cast<int>(leaf), 0);
  r = {static_cast<std::uint32_t>(out[0]), static_cast<std::uint32_t>(out[1]), static_cast<std::uint32_t>(out[2]),
       static_cast<std::uint32_t>(out[3])};
#else
  if (!__get_cpuid_count(leaf, 0, &r.eax, &r.ebx, &r.ecx, &r.edx)) return Registers{};
#endif
  return r;
}

// The register states that the operating system saves at a task switch (XCR0): bits 1 and 2 for AVX, 5 to 7 for AVX-512
// besides, 17 and 18 for AMX. A processor may have instructions whose registers the system would lose.
std::uint64_t saved_states() {
  if ((cpuid(1).ecx >> 27 & 1) == 0) return 0;  // OSXSAVE
#if defined(_MSC_VER)
  return _xgetbv(0);
#else
  std::uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<std::uint64_t>(high) << 32 | low;
#endif
}

bool all_set(std::uint64_t value, std::uint64_t mask) { return (value & mask) == mask; }

bool has_avx2() {
  const std::uint32_t fma_avx_f16c = 1u << 12 | 1u << 28 | 1u << 29;
  return all_set(saved_states(), 0x6) && all_set(cpuid(1).ecx, fma_avx_f16c) && all_set(cpuid(7).ebx, 1u << 5);
}

bool has_avx512() {
  const std::uint32_t f_dq_bw_vl = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
#if defined(__APPLE__)
  // macOS saves the AVX-512 state only once a thread has used it, so XCR0 shows AVX alone at first.
  const std::uint64_t states = 0x6;
#else
  const std::uint64_t states = 0xe6;
#endif
  return has_avx2() && all_set(saved_states(), states) && all_set(cpuid(7).ebx, f_dq_bw_vl);
}

bool has_vnni() { return has_avx512() && all_set(cpuid(7).ecx, 1u << 11); }

#if defined(__linux__)
// Tiles are large, so Linux wants to be asked before a process may use them.
bool has_amx() {
  const std::uint32_t tile_int8 = 1u << 24 | 1u << 25;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return has_vnni() && all_set(saved_states(), 3u << 17) && all_set(cpuid(7).edx, tile_int8) &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

#elif defined(LEMUR_ANN_ARM64)

bool has_dotprod() {
#if defined(__linux__)
  return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__APPLE__)
  return true;  // every Apple processor that macOS runs on
#else
  return false;
#endif
}

#endif

std::vector<const KernelTable*> detect_tables() {
  std::vector<const KernelTable*> tables;
#ifdef LEMUR_ANN_DETECT_X86
#if defined(__linux__)
  if (has_amx()) tables.push_back(&kAmxKernels);
#endif
  if (has_vnni()) tables.push_back(&kAvx512VnniKernels);
  if (has_avx512()) tables.push_back(&kAvx512Kernels);
  if (has_avx2()) tables.push_back(&kAvx2Kernels);
#elif defined(LEMUR_ANN_ARM64)
  if (has_dotprod()) tables.push_back(&kNeonDotprodKernels);
  tables.push_back(&kNeonKernels);
#endif
  tables.push_back(&kScalarKernels);
  return tables;
}

const std::vector<const KernelTable*>& supported_tables() {
  static const std::vector<const KernelTable*> tables = detect_tables();
  return tables;
}

const KernelTable& find(const std::string& isa, const char* source) {
  std::string names;
  for (const KernelTable* table : supported_tables()) {
    if (isa == table->isa) return *table;
    names += names.empty() ? table->isa : std::string(", ") + table->isa;
  }
  bool known = false;
  for (const char* name : {"amx", "avx512_vnni", "avx512", "avx2", "neon_dotprod", "neon"}) known |= isa == name;
  throw std::invalid_argument(std::string(source) + " is '" + isa + "', " +
                              (known ? "which this machine does not support" : "which is not an instruction set") +
                              "; expected one of: " + names);
}

std::atomic<const KernelTable*> active{nullptr};

}  // namespace

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const KernelTable* table : supported_tables()) names.emplace_back(table->isa);
  return names;
}

const KernelTable& active_kernels() {
  const KernelTable* table = active.load(std::memory_order_acquire);
  if (table == nullptr) {
    const char* wanted = std::getenv("LEMUR_ANN_ISA");
    table = wanted != nullptr && *wanted != '\0' ? &find(wanted, "LEMUR_ANN_ISA") : supported_tables().front();
    active.store(table, std::memory_order_release);
  }
  return *table;
}

void force_isa(const std::string& isa) { active.store(&find(isa, "isa"), std::memory_order_release); }

}  // namespace lemur
