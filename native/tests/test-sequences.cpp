// Which tokens count as generated, and how the mark moves with the sequence.

#include "check.h"
#include "sequences.h"

int main() {
    pyskip_sequences s;
    CHECK(s.index(0, 100) == -1); // nobody said anything: prompt

    s.set_from(0, 10);
    CHECK(s.index(0, 9) == -1);
    CHECK(s.index(0, 10) == 0);
    CHECK(s.index(0, 13) == 3);
    CHECK(s.index(1, 13) == -1);

    s.copy(0, 1);
    CHECK(s.index(1, 12) == 2);
    s.copy(7, 1); // from a sequence without a mark
    CHECK(s.index(1, 12) == -1);

    s.add(0, 4, -1, -4); // context shift: positions 4.. move down
    CHECK(s.index(0, 6) == 0);
    s.add(0, 0, 3, 5); // does not reach the mark
    CHECK(s.index(0, 6) == 0);
    s.add(0, 0, -1, -100); // never below 0
    CHECK(s.index(0, 0) == 0);

    s.set_from(0, 12);
    s.div(0, 0, -1, 4);
    CHECK(s.index(0, 3) == 0);
    s.div(0, 0, -1, 0); // not a division
    CHECK(s.index(0, 3) == 0);

    s.set_from(2, 5);
    s.keep(2);
    CHECK(s.index(0, 50) == -1);
    CHECK(s.index(2, 6) == 1);

    s.set_from(-1, 8); // every sequence, also those to come
    CHECK(s.index(2, 8) == 0);
    CHECK(s.index(99, 9) == 1);
    s.set_from(99, -1);
    CHECK(s.index(99, 9) == -1);

    s.clear();
    CHECK(s.index(2, 8) == -1);
    return check_result("test-sequences");
}
