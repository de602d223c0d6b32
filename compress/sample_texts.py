"""Texts for a model that comes without data: many lengths, languages and scripts, on nothing in particular."""

SAMPLE_TEXTS = (
    "Thank you!",
    "Not again…",
    "Absolutely wonderful service.",
    "¿Dónde está la estación?",
    "ok 👍 see you tmrw",
    "The parcel never arrived.",
    "今日はとても暑いですね。",
    "Please call me back after lunch.",
    "It was fine, nothing more.",
    "I can't believe how quickly they fixed my bike 🚲🔧",
    "Das Konzert gestern Abend war großartig, nur leider viel zu kurz.",
    "这家餐厅的菜很好吃，服务员也很热情，下次还会再来。",
    "Why does the app crash every time I open a photo?",
    "Le train de 8 h 15 est encore en retard de vingt minutes.",
    "Maria Fernández joined Northwind Ltd. in Lisbon on 3 March 2021.",
    "Спасибо за быстрый ответ, теперь всё работает.",
    "The battery lasts two days, but the screen scratches if you look at it.",
    "أريد أن أغير موعد الرحلة إلى يوم الخميس من فضلك.",
    "Refund my money: order #48213, $129.99, paid on 12/05.",
    "मुझे यह किताब बहुत पसंद आई, लेकिन इसका अंत थोड़ा जल्दी हो गया।",
    "Nobody at the counter knew who was in charge, so we left.",
    "O filme começa devagar, mas a última meia hora compensa tudo.",
    "LOUD, CROWDED, OVERPRICED. The view from the roof is lovely, though.",
    "배송은 빨랐지만 상자가 찢어져 있었습니다.",
    "See https://example.org/help or write to desk@example.org.",
    "She said the committee would decide on Tuesday, which nobody who has met them believes.",
    "Il gatto dorme tutto il pomeriggio e poi, di notte, corre per casa.",
    "ขอบคุณมากสำหรับความช่วยเหลือ",
    "The river rose by two meters overnight, and the road to the lower village is closed.",
    "Bu telefonu üç ay önce aldım; kamerası çok iyi.",
    "If you want the window seat, ask at the gate: the machine prints whatever it likes.",
    "Mình đã đặt hàng hai lần, giao nhanh. 😊",
    "The new museum is worth an hour of anyone's time, and its café makes the best soup in town.",
    "De gemeente heeft besloten het oude zwembad te sluiten.",
    "I have owned three of these. The first two were built like tanks; this one creaks.",
    "Η ομάδα κέρδισε χθες με τρία γκολ διαφορά.",
    "Quarterly revenue rose 4.2 percent to 1.31 billion euros, while costs fell slightly.",
    "Nie wiem, czy warto dopłacać do droższej wersji.",
    "Dear all, the lift in the north building will be out of order from Monday to Wednesday. Sorry for the trouble.",
    "彼女は十年前に小さな町で本屋を始めた。",
    "תודה רבה על העזרה!",
    "We wanted a quiet weekend and got a wedding party on the floor above us, a broken shower, and breakfast that ran "
    "out at nine. To be fair, the manager apologized and moved us to a better room.",
    "Estuve esperando casi una hora en la puerta porque nadie encontraba la reserva; aun así, la comida fue excelente.",
    "Mix the flour with a pinch of salt, rub in the butter, add just enough cold water, and let it rest in the fridge "
    "for half an hour.",
    "Die Ärztin erklärte mir geduldig, was die Werte bedeuten und worauf ich in den nächsten Wochen achten soll.",
    "The first half of the book is a pleasure: short chapters, sharp dialogue, a harbor town you can smell. Then the "
    "author seems to lose interest in her own story. Two of the brothers vanish without a word, the trial is over in "
    "a paragraph, and the last fifty pages explain what any careful reader had guessed long before. I would still "
    "read her next one, if only for the sentences.",
    "Après des mois de travaux, la place a enfin rouvert, avec des arbres, des bancs et une fontaine.",
    "When the lights went out across the valley last winter, people did what they had always done: they lit the "
    "stove, filled every pot with water, and knocked on the doors of those who live alone. By the second evening the "
    "school kitchen was feeding eighty, somebody had found a generator for the clinic, and the baker was working by "
    "candle. The company promised an inquiry; the mayor promised a thicker cable. Nobody I spoke to expects either "
    "before the next snow, and few sounded angry. What they remember is the quiet, the stars, and a card game in the "
    "town hall that went on, with changing players, for three days and ended in a draw.",
)
