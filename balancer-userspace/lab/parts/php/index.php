<?php
// A server of the session lab: who it is, whose session this is, and how often it was counted up.
header('Content-Type: text/plain');
$name = $_SERVER['SERVER_NAME'];
if (isset($_GET['health'])) {
    echo 'ok';
    exit;
}
// A session that cannot be read or written is no answer.
set_error_handler(function (int $kind, string $message) use ($name): bool {
    http_response_code(500);
    echo "$name failed: $message";
    exit;
});
$bytes = strlen(file_get_contents('php://input'));
session_start();
if (isset($_GET['login'])) {
    $_SESSION['user'] = $_GET['login'];
    $_SESSION['count'] = 0;
} elseif (isset($_SESSION['user'])) {
    $_SESSION['count'] += 1;
}
$user = $_SESSION['user'] ?? '-';
$count = $_SESSION['count'] ?? 0;
session_write_close();
echo "$name $user $count $bytes /";
