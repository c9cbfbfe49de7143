package page

func test(w words.Words) { w.Say("not.read") }
