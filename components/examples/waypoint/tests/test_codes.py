"""Codes are unique, reversible, and notice typing errors."""

import unittest

from waypoint import codes


class Codes(unittest.TestCase):
    def test_there_and_back(self) -> None:
        for number in (0, 1, 2, 31, 32, 12345, codes.LIMIT - 1):
            self.assertEqual(codes.decode(codes.encode(number)), number)

    def test_the_first_ten_thousand_differ(self) -> None:
        self.assertEqual(len({codes.encode(number) for number in range(10_000)}), 10_000)

    def test_neighbours_do_not_look_alike(self) -> None:
        for number in range(100):
            pairs = zip(codes.encode(number), codes.encode(number + 1), strict=True)
            self.assertGreaterEqual(sum(a != b for a, b in pairs), 3)

    def test_every_single_wrong_letter_is_noticed(self) -> None:
        code = codes.encode(4711)
        for place in range(len(code)):
            for letter in set(codes.ALPHABET) - {code[place]}:
                with self.assertRaises(codes.BadCodeError):
                    codes.decode(code[:place] + letter + code[place + 1 :])

    def test_capitals_are_read(self) -> None:
        self.assertEqual(codes.decode(codes.encode(7).upper()), 7)

    def test_what_cannot_be_a_code(self) -> None:
        for text in ("", "abc", "favicon.ico", "0000000", "l" * 7, codes.encode(1) + "2"):
            with self.subTest(text), self.assertRaises(codes.BadCodeError):
                codes.decode(text)

    def test_numbers_out_of_range(self) -> None:
        for number in (-1, codes.LIMIT):
            with self.subTest(number), self.assertRaises(ValueError):
                codes.encode(number)


if __name__ == "__main__":
    unittest.main()
