// What rankings are made of: a row or a document with its score, and the one order of them.
#pragma once

namespace lemur {

template <class Index>
struct Scored {
  float score;
  Index index;
};

// Best first, and the smaller index first among equals: so a ranking has one order, whatever the threads and the sort.
struct Better {
  template <class Index>
  bool operator()(const Scored<Index>& a, const Scored<Index>& b) const {
    return a.score > b.score || (a.score == b.score && a.index < b.index);
  }
};

}  // namespace lemur
