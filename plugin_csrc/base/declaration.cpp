#include "declaration.h"

#include <algorithm>
#include <cctype>
#include <sstream>

#include "refusal.h"

namespace gr {
namespace {

using Sizes = std::map<std::string, int64_t>;

// A shape for one tensor: what stands in its axes for the number of name1, name2, ... is filled in.
struct Form {
  DeclaredShape const* shape;
  std::vector<std::vector<std::string>> factors;

  bool takes(size_t rank) const { return shape->rest ? rank >= shape->axes.size() : rank == shape->axes.size(); }
};

int64_t product(std::vector<std::string> const& factors, Sizes const& sizes, size_t& missing) {
  int64_t by = 1;
  missing = 0;
  for (std::string const& factor : factors) {
    auto const found = sizes.find(factor);
    missing += found == sizes.end() ? 1 : 0;
    by *= found == sizes.end() ? 1 : found->second;
  }
  return by;
}

// Adds the one size that is missing, where `found` tells it.
void solve(DeclaredAxis const& axis, std::vector<std::string> const& factors, int64_t found, Sizes& sizes) {
  size_t missing = 0;
  int64_t const by = product(factors, sizes, missing);
  if (missing == 1 && by > 0 && (found - axis.plus) % by == 0) {
    auto const unknown = std::find_if(factors.begin(), factors.end(), [&](auto const& item) { return sizes.count(item) == 0; });
    sizes[*unknown] = (found - axis.plus) / by;
  }
}

bool fits(DeclaredAxis const& axis, std::vector<std::string> const& factors, int64_t found, Sizes const& sizes) {
  if (found < 0 || (axis.broadcasts && found == 1)) {
    return true;
  }
  size_t missing = 0;
  int64_t const by = factors.empty() ? 0 : product(factors, sizes, missing);
  return missing == 0 || by == 0 ? found == by + axis.plus : (found - axis.plus) % by == 0;
}

bool fits(Form const& form, std::vector<int64_t> const& found, Sizes const& sizes, std::vector<int64_t> const& rest) {
  size_t const before = found.size() - form.shape->axes.size();
  if (form.shape->rest) {
    if (before != rest.size()) {
      return false;
    }
    for (size_t index = 0; index < before; ++index) {
      if (found[index] >= 0 && rest[index] >= 0 && found[index] != rest[index]) {
        return false;
      }
    }
  }
  for (size_t index = 0; index < form.shape->axes.size(); ++index) {
    if (!fits(form.shape->axes[index], form.factors[index], found[before + index], sizes)) {
      return false;
    }
  }
  return true;
}

std::string text(std::vector<int64_t> const& axes) {
  std::ostringstream told;
  for (size_t index = 0; index < axes.size(); ++index) {
    told << (index == 0 ? "" : ", ") << (axes[index] < 0 ? "?" : std::to_string(axes[index]));
  }
  return told.str();
}

[[noreturn]] void refuseShape(Shaped const& tensor, std::vector<Form> const& forms, Sizes const& sizes,
                              std::vector<int64_t> const& rest) {
  if (forms.empty()) {
    refuse(tensor.name, " is [", text(tensor.axes), "], a node of this kind has no ", tensor.name);
  }
  std::ostringstream allowed;
  std::vector<std::string> known;
  bool hasRest = false;
  for (Form const& form : forms) {
    allowed << (&form == &forms.front() ? "" : " or ") << form.shape->text;
    hasRest = hasRest || form.shape->rest;
    for (auto const& factors : form.factors) {
      for (std::string const& factor : factors) {
        auto const found = sizes.find(factor);
        std::string const told = found == sizes.end() ? "" : factor + " = " + std::to_string(found->second);
        if (!told.empty() && std::find(known.begin(), known.end(), told) == known.end()) {
          known.push_back(told);
        }
      }
    }
  }
  if (hasRest) {
    known.push_back("... = [" + text(rest) + "]");
  }
  std::ostringstream with;
  for (std::string const& item : known) {
    with << (&item == &known.front() ? " with " : ", ") << item;
  }
  refuse(tensor.name, " is [", text(tensor.axes), "], allowed is ", allowed.str(), with.str());
}

}  // namespace

bool isVariadic(std::string_view declared) { return !declared.empty() && declared.back() == '*'; }

bool stands(std::string_view name, std::string_view declared) {
  if (name == declared || !isVariadic(declared)) {
    return name == declared;
  }
  declared.remove_suffix(1);
  std::string_view const number = name.substr(std::min(declared.size(), name.size()));
  return name.substr(0, declared.size()) == declared && !number.empty() &&
         std::all_of(number.begin(), number.end(), [](unsigned char c) { return std::isdigit(c) != 0; });
}

std::map<std::string, int64_t> boundSizes(Declaration const& declaration, std::vector<Shaped> const& tensors,
                                          std::function<std::string(char const*)> const& attribute) {
  auto const given = [&](char const* name) {
    auto const of = [&](auto const& all, char const* what) {
      return std::any_of(all.begin(), all.end(), [&](auto const& item) { return std::string_view(item.name) == what; });
    };
    return !of(declaration.inputs, name) ? attribute(name) : std::string(of(tensors, name) ? "given" : "absent");
  };
  Sizes sizes;
  for (auto const& [size, name] : declaration.sizes) {
    sizes[size] = std::stoll(attribute(name));
  }
  auto const declared = [&](std::string_view name) -> DeclaredTensor const& {
    for (auto const* all : {&declaration.inputs, &declaration.outputs}) {
      for (DeclaredTensor const& item : *all) {
        if (stands(name, item.name)) {
          return item;
        }
      }
    }
    refuse("no tensor ", name, " is declared");
  };
  std::vector<std::vector<Form>> allowed;  // of each tensor
  std::vector<Form const*> single;         // the only one of those with so many axes, or nullptr
  for (Shaped const& tensor : tensors) {
    DeclaredTensor const& item = declared(tensor.name);
    std::string const number = isVariadic(item.name) ? tensor.name.substr(std::string_view(item.name).size() - 1) : "";
    std::vector<Form>& forms = allowed.emplace_back();
    for (DeclaredShape const& shape : item.shapes) {
      if (shape.attribute != nullptr && given(shape.attribute) != shape.value) {
        continue;
      }
      Form& form = forms.emplace_back(Form{&shape, {}});
      for (DeclaredAxis const& axis : shape.axes) {
        std::vector<std::string>& factors = form.factors.emplace_back(axis.factors.begin(), axis.factors.end());
        for (std::string& factor : factors) {
          factor = isVariadic(factor) ? factor.substr(0, factor.size() - 1) + number : factor;
        }
      }
    }
  }
  std::vector<int64_t> rest;
  bool hasRest = false;
  for (size_t index = 0; index < tensors.size(); ++index) {
    auto const takes = [&](Form const& form) { return form.takes(tensors[index].axes.size()); };
    auto const& forms = allowed[index];
    auto const found = std::find_if(forms.begin(), forms.end(), takes);
    single.push_back(std::count_if(forms.begin(), forms.end(), takes) == 1 ? &*found : nullptr);
    if (single.back() != nullptr && single.back()->shape->rest && !hasRest) {
      hasRest = true;
      rest.assign(tensors[index].axes.begin(), tensors[index].axes.end() - static_cast<int64_t>(found->shape->axes.size()));
    }
  }
  // For each axis of those with a single shape.
  auto const each = [&](auto&& function) {
    for (size_t index = 0; index < tensors.size(); ++index) {
      Form const* const form = single[index];
      size_t const count = form == nullptr ? 0 : form->shape->axes.size();
      for (size_t axis = 0; axis < count; ++axis) {
        function(form->shape->axes[axis], form->factors[axis], tensors[index].axes[tensors[index].axes.size() - count + axis]);
      }
    }
  };
  for (size_t round = 0; round < declaration.inputs.size(); ++round) {  // each may make another size known
    each([&](DeclaredAxis const& axis, auto const& factors, int64_t size) {
      if (!axis.broadcasts && size >= 0) {
        solve(axis, factors, size, sizes);
      }
    });
  }
  // Of the sizes that no axis must have, it is the one that is not 1.
  each([&](DeclaredAxis const& axis, auto const& factors, int64_t) {
    if (!axis.broadcasts) {
      return;
    }
    int64_t found = 1;
    bool known = true;
    each([&](DeclaredAxis const& other, auto const& names, int64_t size) {
      bool const same = other.broadcasts && other.plus == axis.plus && names == factors;
      known = known && !(same && size < 0);
      found = same && found == 1 && size >= 0 ? size : found;
    });
    if (known || found != 1) {
      solve(axis, factors, found, sizes);
    }
  });
  for (auto const& [size, least] : declaration.least) {
    auto const found = sizes.find(size);
    if (found != sizes.end() && found->second < least) {
      refuse(size, " is ", found->second, ", allowed is ", least, " or more");
    }
  }
  for (size_t index = 0; index < tensors.size(); ++index) {
    std::vector<Form> const& forms = allowed[index];
    auto const& axes = tensors[index].axes;
    bool const right = std::any_of(forms.begin(), forms.end(),
                                   [&](Form const& form) { return form.takes(axes.size()) && fits(form, axes, sizes, rest); });
    if (!right) {
      refuseShape(tensors[index], forms, sizes, rest);
    }
  }
  return sizes;
}

}  // namespace gr
