// Adds happens-before edges for TSan, also between contexts that are not running.
#include "races.h"

#ifdef SIMCUDA_TSAN
#include <sanitizer/tsan_interface.h>

#include <cstdlib>

namespace sim {
namespace {

// Acts as another context until the end of the scope.
class As {
 public:
  explicit As(Context context) : mine_(__tsan_get_current_fiber()) { be(context); }
  ~As() { be(mine_); }
  As(const As&) = delete;

 private:
  static void be(Context context) { __tsan_switch_to_fiber(context, __tsan_switch_to_fiber_no_sync); }
  Context mine_;
};

}  // namespace

Context new_context() { return __tsan_create_fiber(0); }

void end_context(Context& context) {
  if (context != nullptr) __tsan_destroy_fiber(context);
  context = nullptr;
}

void order(const std::vector<Context>& before, const std::vector<Context>& after) {
  void* meeting = std::malloc(8);  // TSan forgets an address when it is freed, so this starts clean
  for (Context context : before) {
    As as(context);
    __tsan_release(meeting);
  }
  for (Context context : after) {
    As as(context);
    __tsan_acquire(meeting);
  }
  std::free(meeting);
}

void fence_of(Context thread, FenceContexts& contexts) {
  if (contexts.seen != nullptr) order({contexts.seen}, {thread});
  if (contexts.before == nullptr) {
    contexts.before = new_context();
  } else {
    order({thread}, {contexts.before});
  }
}

void before_atomic_of(FenceContexts& contexts, const void* address) {
  if (contexts.before == nullptr) return;
  As as(contexts.before);
  __tsan_release(const_cast<void*>(address));
}

void after_atomic_of(FenceContexts& contexts, const void* address) {
  if (contexts.seen == nullptr) contexts.seen = new_context();
  As as(contexts.seen);
  __tsan_acquire(const_cast<void*>(address));
}

}  // namespace sim
#endif
