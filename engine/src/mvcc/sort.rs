//! A sort whose order of *equal* elements is that of Go's `sort.Sort`.
//!
//! etcd sorts ranges by version, create or mod revision or value with it, and it is not stable:
//! among equal elements the order is whatever its pattern-defeating quicksort leaves. A drop-in
//! answers in the same order, so each decision of that algorithm (pivots, thresholds, the
//! pseudo-random swaps) is made here as there. Reference: Go 1.26, package sort, and
//! arxiv.org/abs/2106.05123.

/// Ranges up to this long are sorted by insertion.
const INSERTION_MAX: usize = 12;
/// Ranges from this long on take the pivot from nine elements rather than three.
const NINTHER_MIN: usize = 50;
/// Exchanges made while choosing from nine elements that stand in descending order.
const DESCENDING_SWAPS: usize = 12;
/// Pairs out of order that a nearly sorted range may have mended in place.
const MENDED_PAIRS_MAX: usize = 5;

/// Sorts `items` by `less`, a strict weak order.
pub fn sort_as_go<T>(items: &mut [T], less: impl Fn(&T, &T) -> bool) {
    let len = items.len();
    if len > 1 {
        let bad_pivots = usize::BITS - len.leading_zeros();
        Sorter { items, less }.sort(0, len, bad_pivots);
    }
}

struct Sorter<'a, T, L> {
    items: &'a mut [T],
    less: L,
}

impl<T, L: Fn(&T, &T) -> bool> Sorter<'_, T, L> {
    fn less(&self, a: usize, b: usize) -> bool {
        (self.less)(&self.items[a], &self.items[b])
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.items.swap(a, b);
    }

    /// Sorts `a..b`; after `bad_pivots` unbalanced partitions by heap.
    fn sort(&mut self, mut a: usize, mut b: usize, mut bad_pivots: u32) {
        let (mut balanced, mut partitioned) = (true, true);
        loop {
            let len = b - a;
            if len <= INSERTION_MAX {
                return self.insertion(a, b);
            }
            if bad_pivots == 0 {
                return self.heap(a, b);
            }
            if !balanced {
                self.scatter(a, b);
                bad_pivots -= 1;
            }
            let (mut pivot, swaps) = self.choose_pivot(a, b);
            let mut ascending = swaps == 0;
            if swaps == DESCENDING_SWAPS {
                self.items[a..b].reverse();
                pivot = (b - 1) - (pivot - a);
                ascending = true;
            }
            if balanced && partitioned && ascending && self.mend(a, b) {
                return;
            }
            // What stands before `a` is no greater than anything in a..b: a pivot equal to it is
            // the least here, and likely has many equals.
            if a > 0 && !self.less(a - 1, pivot) {
                a = self.partition_equal(a, b, pivot);
                continue;
            }
            let middle;
            (middle, partitioned) = self.partition(a, b, pivot);
            let (left, right) = (middle - a, b - middle);
            balanced = left.min(right) >= len / 8;
            if left < right {
                self.sort(a, middle, bad_pivots);
                a = middle + 1;
            } else {
                self.sort(middle + 1, b, bad_pivots);
                b = middle;
            }
        }
    }

    fn insertion(&mut self, a: usize, b: usize) {
        for i in a + 1..b {
            let mut j = i;
            while j > a && self.less(j, j - 1) {
                self.swap(j, j - 1);
                j -= 1;
            }
        }
    }

    fn heap(&mut self, a: usize, b: usize) {
        let len = b - a;
        for root in (0..=(len - 1) / 2).rev() {
            self.sift_down(a, root, len);
        }
        for end in (0..len).rev() {
            self.swap(a, a + end);
            self.sift_down(a, 0, end);
        }
    }

    fn sift_down(&mut self, base: usize, mut root: usize, end: usize) {
        loop {
            let mut child = 2 * root + 1;
            if child >= end {
                return;
            }
            if child + 1 < end && self.less(base + child, base + child + 1) {
                child += 1;
            }
            if !self.less(base + root, base + child) {
                return;
            }
            self.swap(base + root, base + child);
            root = child;
        }
    }

    /// Elements below the pivot, the pivot (whose place is returned), the others; and whether they
    /// stood so already.
    fn partition(&mut self, a: usize, b: usize, pivot: usize) -> (usize, bool) {
        self.swap(a, pivot);
        let (mut i, mut j) = (a + 1, b - 1);
        let mut already = true;
        loop {
            while i <= j && self.less(i, a) {
                i += 1;
            }
            while i <= j && !self.less(j, a) {
                j -= 1;
            }
            if i > j {
                self.swap(j, a);
                return (j, already);
            }
            already = false;
            self.swap(i, j);
            i += 1;
            j -= 1;
        }
    }

    /// Elements equal to the pivot, then the greater ones, whose start is returned.
    fn partition_equal(&mut self, a: usize, b: usize, pivot: usize) -> usize {
        self.swap(a, pivot);
        let (mut i, mut j) = (a + 1, b - 1);
        loop {
            while i <= j && !self.less(a, i) {
                i += 1;
            }
            while i <= j && self.less(a, j) {
                j -= 1;
            }
            if i > j {
                return i;
            }
            self.swap(i, j);
            i += 1;
            j -= 1;
        }
    }

    /// Tries to sort a nearly sorted range; whether it is sorted now.
    fn mend(&mut self, a: usize, b: usize) -> bool {
        let mut i = a + 1;
        for _ in 0..MENDED_PAIRS_MAX {
            while i < b && !self.less(i, i - 1) {
                i += 1;
            }
            if i == b {
                return true;
            }
            if b - a < NINTHER_MIN {
                return false;
            }
            self.swap(i, i - 1);
            if i - a >= 2 {
                // Down to 1, not to a: as the reference has it.
                let mut j = i - 1;
                while j >= 1 && self.less(j, j - 1) {
                    self.swap(j, j - 1);
                    j -= 1;
                }
            }
            if b - i >= 2 {
                let mut j = i + 1;
                while j < b && self.less(j, j - 1) {
                    self.swap(j, j - 1);
                    j += 1;
                }
            }
        }
        false
    }

    /// Exchanges three elements about the middle with others, pseudo-random by the length.
    fn scatter(&mut self, a: usize, b: usize) {
        let len = b - a;
        let mut random = len as u64;
        let mask = (1 << (usize::BITS - len.leading_zeros())) - 1;
        let middle = a + (len / 4) * 2;
        for i in middle - 1..=middle + 1 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let mut other = random as usize & mask;
            if other >= len {
                other -= len;
            }
            self.swap(i, a + other);
        }
    }

    /// The pivot's place, and how many comparisons found a pair in descending order.
    fn choose_pivot(&self, a: usize, b: usize) -> (usize, usize) {
        let len = b - a;
        let mut swaps = 0;
        let [mut i, mut j, mut k] = [1, 2, 3].map(|quarter| a + len / 4 * quarter);
        if len >= NINTHER_MIN {
            for at in [&mut i, &mut j, &mut k] {
                *at = self.median([*at - 1, *at, *at + 1], &mut swaps);
            }
        }
        (self.median([i, j, k], &mut swaps), swaps)
    }

    fn median(&self, mut of: [usize; 3], swaps: &mut usize) -> usize {
        for (x, y) in [(0, 1), (1, 2), (0, 1)] {
            if self.less(of[y], of[x]) {
                *swaps += 1;
                of.swap(x, y);
            }
        }
        of[1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generate(len: usize, modulus: u64, seed: u64) -> Vec<(u64, usize)> {
        let mut state = seed;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % modulus
        };
        (0..len).map(|i| (next(), i)).collect()
    }

    /// FNV-1a over the places of the sorted elements.
    fn fingerprint(items: &[(u64, usize)]) -> u64 {
        items.iter().fold(0xcbf2_9ce4_8422_2325, |h, (_, i)| {
            (h ^ *i as u64).wrapping_mul(0x0100_0000_01b3)
        })
    }

    #[test]
    fn equal_elements_stand_as_go_leaves_them() {
        // Fingerprints by sort.Sort of Go 1.26 on the same input.
        for (len, modulus, want) in GO {
            let mut items = generate(len, modulus, len as u64);
            sort_as_go(&mut items, |a, b| a.0 < b.0);
            assert!(items.is_sorted_by_key(|x| x.0));
            assert_eq!(fingerprint(&items), want, "{len} elements modulo {modulus}");
        }
    }

    #[test]
    fn patterns_end_sorted() {
        for len in 0..200 {
            let patterns: [fn(usize, usize) -> usize; 4] =
                [|i, _| i, |i, n| n - i, |i, _| i % 3, |i, n| i.min(n - i)];
            for pattern in patterns {
                let mut items: Vec<usize> = (0..len).map(|i| pattern(i, len)).collect();
                sort_as_go(&mut items, |a, b| a < b);
                assert!(items.is_sorted());
            }
        }
    }

    #[rustfmt::skip]
    const GO: [(usize, u64, u64); 55] = [
        (5, 1, 0x3378e3d0c52edfaf),
        (5, 2, 0x71594b24fb552c85),
        (5, 7, 0xa2b8d90c02811465),
        (5, 100, 0x955786c796ddbd59),
        (5, 1073741824, 0xcec8af038ede3f95),
        (12, 1, 0x2d7d4819416d7fb9),
        (12, 2, 0x7794657f7c7018eb),
        (12, 7, 0xa858842e6c903f31),
        (12, 100, 0x2859b2daaf6fbf29),
        (12, 1073741824, 0x62763f2bf0d5307b),
        (13, 1, 0xb96137ea2d10008f),
        (13, 2, 0x325aa1178dde0b73),
        (13, 7, 0xac993a89313bc97d),
        (13, 100, 0xf784c2173d188567),
        (13, 1073741824, 0xe4745040fcfc7001),
        (40, 1, 0xc9ccf0fe5fbdeb1d),
        (40, 2, 0x4a851a61f6c619),
        (40, 7, 0x43762c32bb1b6a7),
        (40, 100, 0x4ab1b69fd2cc1c8f),
        (40, 1073741824, 0xaba91d386056fb0b),
        (49, 1, 0x360a5c9d3b1bf95f),
        (49, 2, 0xd7c8dfe23eff4c47),
        (49, 7, 0x49f8bec37e4e04ed),
        (49, 100, 0x946d979d6bf90e33),
        (49, 1073741824, 0x1f89a96649da6873),
        (50, 1, 0xef94cd2b7088d5ea),
        (50, 2, 0x4b5a92598de326ba),
        (50, 7, 0xde0013c57a85c6ee),
        (50, 100, 0xf81c000647d59410),
        (50, 1073741824, 0x699d59186e3577c4),
        (51, 1, 0xa2ae78d038835e08),
        (51, 2, 0xe13ce5bc6d854da4),
        (51, 7, 0x721881a905d58e9a),
        (51, 100, 0xaa2850eda5ac0154),
        (51, 1073741824, 0x51dde75f39362dfe),
        (100, 1, 0xfb5c8cec60d83ab1),
        (100, 2, 0x14d7bb2aa576a617),
        (100, 7, 0x878e39bf00d3e29b),
        (100, 100, 0x9a0aff26cb7f9c4f),
        (100, 1073741824, 0x5b42bca46ee12a05),
        (333, 1, 0x628eb3883995210f),
        (333, 2, 0xb5bb1bff06527079),
        (333, 7, 0x3257638f4d801759),
        (333, 100, 0xe8715c16c9303cdd),
        (333, 1073741824, 0x1db645c14a066ec7),
        (1000, 1, 0x988cc5afd8cb65dd),
        (1000, 2, 0x120aab8ea420bec1),
        (1000, 7, 0x6cc63e81db213cc9),
        (1000, 100, 0xd1b8ed59a1e588ef),
        (1000, 1073741824, 0xe8ed45dfb3f8bfd7),
        (5000, 1, 0x7405579c4bb800fd),
        (5000, 2, 0x2b879162b87ae705),
        (5000, 7, 0xbf9c39bf87cdc411),
        (5000, 100, 0xf580f343268be6eb),
        (5000, 1073741824, 0x1e0962b669f3f103),
    ];
}
