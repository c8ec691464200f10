-- Backups go to whoever asks for them: the master keeps none and no list of them. Logins are counted by the
-- rate limiter, in the process and in Redis.

drop table backups;
drop table login_attempts;
