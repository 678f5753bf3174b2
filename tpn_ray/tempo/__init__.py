"""The paper's section 4.3: visual tempo of videos, gain against its variance, accuracy against playback speed."""
