# Beside the server, in its container: writes MIB of memory again and again, RATE a second, which is more than its link takes.
#
# Pages of random bytes, which no compression makes less, each with a number that says when it was written. A page that has another
# number when its turn comes is not what it was: that is noted in /data/wrong.

my ($mib, $rate) = @ARGV;
my $pages = $mib << 8;
open my $random, '<:raw', '/dev/urandom' or die "no random bytes: $!";
my $memory = "\0" x ($mib << 20);
for my $at (0 .. $mib - 1) {
    sysread $random, my $piece, 1 << 20;
    substr $memory, $at << 20, 1 << 20, $piece;
}
close $random;
substr $memory, $_ << 12, 8, pack 'Q', $_ for 0 .. $pages - 1;
for (my $number = $pages; ; $number++) {
    my $at = ($number % $pages) << 12;
    my $found = unpack 'Q', substr $memory, $at, 8;
    if ($found != $number - $pages) {
        open my $wrong, '>>', '/data/wrong';
        print $wrong "the page at $at of $mib MiB has $found instead of ", $number - $pages, "\n";
        exit 1;
    }
    substr $memory, $at, 8, pack 'Q', $number;
    # After a freeze nothing is made up for.
    select undef, undef, undef, 64 / ($rate << 8) if $number % 64 == 0;
}
