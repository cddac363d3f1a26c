//! Prime numbers for the sizes of lookup tables.

/// The size of the largest table: the greatest prime below 2^24.
pub(super) const MAX_TABLE_SIZE: u32 = 16_777_213;

pub(super) fn is_prime(number: u32) -> bool {
    number >= 2
        && (2..).take_while(|divisor| divisor * divisor <= number).all(|divisor| !number.is_multiple_of(divisor))
}

/// The smallest prime that is not below `number`; at most [`MAX_TABLE_SIZE`].
pub(super) fn next_prime(number: u32) -> u32 {
    (number..MAX_TABLE_SIZE).find(|&candidate| is_prime(candidate)).unwrap_or(MAX_TABLE_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_numbers_are_below_thirty_then_primes_are_found() {
        let primes: Vec<u32> = (0..30).filter(|&number| is_prime(number)).collect();
        assert_eq!(primes, [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]);
    }

    #[test]
    fn when_a_number_is_given_then_the_next_prime_follows_it() {
        assert_eq!([0, 2, 8, 65_536, 100_000].map(next_prime), [2, 2, 11, 65_537, 100_003]);
        assert_eq!([16_777_212, u32::MAX].map(next_prime), [MAX_TABLE_SIZE; 2]);
        assert!(is_prime(MAX_TABLE_SIZE));
        assert!((MAX_TABLE_SIZE + 1..1 << 24).all(|number| !is_prime(number)));
    }
}
