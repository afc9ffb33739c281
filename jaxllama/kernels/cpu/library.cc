#include "library.h"

namespace jaxllama {
namespace {

Target*& first() {
  static Target* head = nullptr;
  return head;
}

}  // namespace

Target::Target(const char* name, void* handler) : name(name), handler(handler), next(first()) {
  first() = this;
}

}  // namespace jaxllama

// The next target after `place` (the first after null), or null: its name and its handler.
JAXLLAMA_EXPORT void* jaxllama_next_target(void* place, const char** name, void** handler) {
  auto* target = place == nullptr ? jaxllama::first() : static_cast<jaxllama::Target*>(place)->next;
  if (target == nullptr) return nullptr;
  *name = target->name;
  *handler = target->handler;
  return target;
}
